//! Images without damage, and images that are no set. Hundreds of damaged sets are in
//! crates/torture.

mod support;

use support::{MemDevice, frozen, run};
use ubcache_offline::{CheckOptions, check, walk};

/// The newest entry of the journal, torn: as if it had never been written.
#[test]
fn a_torn_end_of_the_journal_is_no_damage() {
    let case = frozen("writeback-crash");
    let cache = MemDevice::new(case.cache.clone());
    let view = run(walk(&cache, &mut (), &())).expect("a set");
    let newest = view.journal.newest().expect("an entry").place;
    let at = view.geometry.bucket_start(view.geometry.journal_bucket(newest.index)).bytes()
        as usize
        + newest.offset as usize;
    cache.change(|image| image[at + newest.bytes as usize / 2..at + newest.bytes as usize].fill(0));
    let report = run(check(&cache, &[], None, CheckOptions::default())).report;
    assert!(report.is_clean(), "{:?}", report.errors());
}

/// Bytes that were never a set, and devices that are cut off.
#[test]
fn check_reports_damage_in_arbitrary_bytes() {
    let case = frozen("writeback-crash");
    for bytes in [0, 512, 4096, 8192, 1 << 20, 20 << 20] {
        let mut image = case.cache.clone();
        image.truncate(bytes);
        let report = run(check(&MemDevice::new(image), &[], None, CheckOptions::default())).report;
        assert!(!report.is_clean());
    }
    let mut image = case.cache.clone();
    let mut random = 1_u64;
    image[8192..].chunks_exact_mut(8).for_each(|word| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&random.to_le_bytes());
    });
    assert!(
        !run(check(&MemDevice::new(image), &[], None, CheckOptions::default())).report.is_clean()
    );
}
