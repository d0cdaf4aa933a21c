//! What Plastron promises beyond SPIRE: runs only when both roles are Plastron's.

mod dev;
mod entry_slips;
mod fault_corpus;
mod freshness;
mod kill;
mod noise;
mod offline;
mod signals;
mod trouble;
