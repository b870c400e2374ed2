//! Damage to sets of the engine and of the Linux driver, by seeds; `crates/torture/src/judge.rs`
//! has the requirements.

use std::collections::BTreeMap;

use ubcache_torture::damage::{KINDS, damage};
use ubcache_torture::judge::{Verdict, judge};
use ubcache_torture::sets::bases;

/// Seeds for a set of the engine, which is small, and for one of the driver.
const SEEDS: (u64, u64) = (300, 40);

#[test]
fn damage_is_reported_and_repaired() {
    let mut counts: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    let (mut total, mut failed) = (0, Vec::new());
    let all = bases();
    assert_eq!(all.len(), 6);
    for base in &all {
        for seed in 0..if base.own { SEEDS.0 } else { SEEDS.1 } {
            let mut image = base.cache.clone();
            let done = damage(base, &mut image, seed);
            total += 1;
            match judge(base, &image, !done.unnoticeable, seed % 4 == 0) {
                Ok(verdict) => {
                    let verdict = match verdict {
                        Verdict::Harmless => "harmless",
                        Verdict::Repaired => "repaired",
                        Verdict::OnlyCopied => "only copied",
                        Verdict::Unrepairable => "not repairable",
                    };
                    for kind in done.words {
                        *counts.entry(kind).or_default().entry(verdict).or_default() += 1;
                    }
                }
                Err(error) => {
                    failed.push(format!("{}, seed {seed}, {:?}: {error}", base.name, done.words))
                }
            }
        }
    }
    println!("{total} damages: {counts:#?}");
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(total >= 1000);
    for kind in KINDS {
        let repaired =
            counts.get(kind).and_then(|verdict| verdict.get("repaired")).copied().unwrap_or(0);
        assert!(repaired > 0 || kind.ends_with("generation"), "{kind} is never noticed");
    }
    let not = |verdict: &BTreeMap<&str, u64>| verdict.get("not repairable").copied().unwrap_or(0);
    assert!(
        counts.values().map(not).sum::<u64>() * 20 < total,
        "hardly any damage can't be repaired"
    );
}
