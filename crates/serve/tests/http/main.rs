//! A server on the loopback address, with LeNet-5 on CPU workers, and clients on plain sockets.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod batching;
mod client;
mod life;
mod protocol;
mod refusals;
mod site;
