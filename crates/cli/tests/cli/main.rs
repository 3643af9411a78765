//! The command as scripts use it: results, files, refusals, limits.

mod bench;
mod bench_load;
mod conv;
mod external;
mod files;
mod inputs;
mod inspect;
mod limits;
mod plan;
mod refusals;
mod run;
#[cfg(unix)]
mod script;
#[cfg(all(feature = "serve", unix))]
mod serve;
mod stability;
