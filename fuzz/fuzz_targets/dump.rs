//! Dumps that a set is restored from; the body is in crates/torture/src/fuzz/dump.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ubcache_torture::fuzz::dump_lines(data));
