//! The server's commands, one file each.

mod agent_ban;
mod agent_list;
mod agent_purge;
mod batch;
mod bundle;
mod bundle_set;
mod bundle_show;
pub(super) mod entry;
mod entry_check;
pub(super) mod entry_create;
mod entry_data;
mod entry_delete;
pub(super) mod entry_list;
mod entry_match;
mod entry_show;
mod entry_update;
mod jwt_mint;
mod localauthority;
mod node;
mod run;
mod token_generate;
mod x509_mint;

use super::command::Command;

pub(super) const COMMANDS: &[Command] = &[
    agent_ban::BAN_COMMAND,
    agent_list::COUNT_COMMAND,
    agent_ban::EVICT_COMMAND,
    agent_list::LIST_COMMAND,
    agent_purge::COMMAND,
    agent_list::SHOW_COMMAND,
    bundle_show::COUNT_COMMAND,
    bundle_set::DELETE_COMMAND,
    bundle_show::LIST_COMMAND,
    bundle_set::SET_COMMAND,
    bundle_show::SHOW_COMMAND,
    entry_show::COUNT_COMMAND,
    entry_create::COMMAND,
    entry_delete::COMMAND,
    entry_match::COMMAND,
    entry_show::COMMAND,
    entry_update::COMMAND,
    jwt_mint::COMMAND,
    run::COMMAND,
    run::VALIDATE_COMMAND,
    token_generate::COMMAND,
    x509_mint::COMMAND,
    localauthority::X509_SHOW,
    localauthority::X509_PREPARE,
    localauthority::X509_ACTIVATE,
    localauthority::X509_TAINT,
    localauthority::X509_REVOKE,
    localauthority::JWT_SHOW,
    localauthority::JWT_PREPARE,
    localauthority::JWT_ACTIVATE,
    localauthority::JWT_TAINT,
    localauthority::JWT_REVOKE,
];
