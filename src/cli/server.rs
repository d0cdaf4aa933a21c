//! The server's commands, one file each.

mod agent_ban;
mod agent_list;
mod agent_purge;
mod batch;
mod bundle;
mod bundle_set;
mod bundle_show;
mod entry;
mod entry_check;
pub(super) mod entry_create;
mod entry_data;
mod entry_delete;
mod entry_show;
mod entry_update;
mod jwt_mint;
mod localauthority;
mod node;
mod run;
mod token_generate;
mod x509_mint;

use super::spec::Command;

pub(super) fn commands() -> Vec<Command> {
    let mut commands = vec![
        agent_ban::ban_command(),
        agent_list::count_command(),
        agent_ban::evict_command(),
        agent_list::list_command(),
        agent_purge::command(),
        agent_list::show_command(),
        bundle_show::count_command(),
        bundle_set::delete_command(),
        bundle_show::list_command(),
        bundle_set::set_command(),
        bundle_show::show_command(),
        entry_show::count_command(),
        entry_create::command(),
        entry_delete::command(),
        entry_show::command(),
        entry_update::command(),
        jwt_mint::command(),
        run::command(),
        run::validate_command(),
        token_generate::command(),
        x509_mint::command(),
    ];
    commands.extend(localauthority::commands());
    commands
}
