//! The wire decoder: whatever arrives, nothing panics, and what is understood says the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/cluster/wire_properties.rs"]
mod wire;

fuzz_target!(|data: &[u8]| wire::check(data));
