//! The configuration language (SPIRE's HCL 1 and JSON, with true positions), the errors that operators read, and
//! files that only their owner may read.
//!
//! Owns reading text into a [`Document`], the typed access through [`Section`], and the faults found on the way. It
//! knows no key of any daemon: reading a key from a section declares it, and a key that is never read is
//! reported as unknown. Values are never quoted in faults, for they may be secrets.

mod document;
mod duration;
mod expand;
pub mod fault;
mod json;
mod parser;
pub mod private_file;
mod scanner;
mod section;
mod source;
mod suggest;
mod syntax;

pub use document::{Document, Environment, MAX_BYTES};
pub use duration::{duration_text, parse_duration, rough_duration_text};
pub use section::{Located, Section};
pub use suggest::closest;
