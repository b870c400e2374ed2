//! Whole small sets under all offline tools; the body is in crates/torture/src/fuzz/check.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ubcache_torture::fuzz::check(data));
