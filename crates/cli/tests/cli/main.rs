//! The command as scripts use it: results, files, refusals, limits.

mod bench;
mod conv;
mod external;
mod files;
mod inputs;
mod limits;
mod plan;
mod refusals;
mod run;
mod stability;
