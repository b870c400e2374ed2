//! The disk of a guest that is not to be trusted; the body is in crates/torture/src/fuzz/guest.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ubcache_torture::fuzz::guest(data));
