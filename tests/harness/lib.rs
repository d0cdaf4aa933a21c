//! Starts the programs under test and their peers.
