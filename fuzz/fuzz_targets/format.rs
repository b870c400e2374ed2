//! Every parser of `crates/format`; the body is in crates/torture/src/fuzz/format.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ubcache_torture::fuzz::format(data));
