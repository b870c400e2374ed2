//! The first command of the README.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use support::{each_io, must, ubcache};

#[test]
fn the_demo_shows_hits_and_intact_data() {
    each_io("the_demo_shows_hits_and_intact_data", |io, directory| {
        // Twice, once is enough for the slower way: the second one finds the files of the first.
        for _ in 0..if io == "ring" { 2 } else { 1 } {
            let said = must(
                ubcache()
                    .env("UBCACHE_IO", io)
                    .args(["demo", "--seconds", "1"])
                    .current_dir(directory),
            );
            for words in [
                "without cache",
                "with cache",
                "hits",
                "misses",
                "bypassed",
                "8192 blocks intact",
                "ubcache make",
            ] {
                assert!(said.contains(words), "\"{words}\" is missing in:\n{said}");
            }
            assert!(directory.join("ubcache-demo/cache.img").exists());
        }
    });
}
