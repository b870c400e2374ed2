//! Whole small sets under the engine; the body is in crates/torture/src/fuzz/serve.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ubcache_torture::fuzz::serve(data));
