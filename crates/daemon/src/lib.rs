//! What the server and the agent share as daemons. It knows neither of them, and no identities.

pub mod tasks;
