//! What Plastron promises beyond SPIRE: runs only when both roles are Plastron's.

mod alias;
mod crash;
mod database_away;
mod database_tls;
mod dev;
mod entry_mistakes;
mod fault_corpus;
mod freshness;
mod malformed;
mod offline;
mod other_node;
mod plain_user;
mod signals;
mod start_failures;
