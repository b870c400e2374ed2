//! Images written by the Linux driver have no damage by `check`, after an orderly stop and after a
//! power cut.

mod support;

use support::{MemDevice, cases, run};
use ubcache_offline::{CheckOptions, check};

#[test]
fn check_finds_nothing_in_images_of_the_driver() {
    for case in cases() {
        let cache = MemDevice::new(case.cache.clone());
        let volumes = case.volumes();
        let backing: Vec<MemDevice> = volumes
            .iter()
            .filter_map(|volume| volume.backing.clone())
            .map(MemDevice::new)
            .collect();
        let report =
            run(check(&cache, &backing.iter().collect::<Vec<_>>(), None, CheckOptions::default()))
                .report;
        println!("{}: {:?} {:?}", case.name, report.stats, report.counts);
        for finding in &report.findings {
            println!("{finding}");
        }
        assert!(report.is_clean(), "{}: {:?}", case.name, report.counts);
        let dirty: u64 = volumes.iter().map(|volume| volume.dirty_sectors).sum();
        assert_eq!(report.stats.dirty_sectors, dirty, "{}", case.name);
        assert_eq!(cache.writes() + backing.iter().map(MemDevice::writes).sum::<u64>(), 0);
    }
}
