//! Packs with patches under all offline tools; the body is in crates/torture/src/fuzz/pack.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ubcache_torture::fuzz::pack_files(data));
