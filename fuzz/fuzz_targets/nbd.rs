//! The NBD codec; the body is in crates/torture/src/fuzz/nbd.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ubcache_torture::fuzz::nbd(data));
