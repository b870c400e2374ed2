//! Damaged sets under the engine: it says what is damaged, or serves; it never panics, whatever is on the disk.
//! Content is not compared: data that rots can't be told from data.

use ubcache_torture::damage::damage;
use ubcache_torture::serve::{How, serve};
use ubcache_torture::sets::{bases, small};

#[test]
fn a_damaged_set_is_refused_or_served() {
    let (mut refused, mut total) = (0, 0);
    let (small, large) = (small(), bases());
    for (base, seeds) in small.iter().map(|base| (base, 400)).chain(large.iter().map(|base| (base, 60))) {
        for seed in 0..seeds {
            let mut image = base.cache.clone();
            damage(base, &mut image, seed);
            let how = How { lazy: seed % 2 == 0, collect: seed % 3 == 0, keep_clean: seed % 5 == 0 };
            let served = serve(base, &image, how);
            refused += u32::from(served.refused.is_some());
            total += 1;
        }
    }
    println!("{total} sets, {refused} of them refused");
    assert!(refused > 0 && refused < total);
}

#[test]
fn a_set_without_damage_is_served_as_it_is() {
    for base in &small() {
        for lazy in [false, true] {
            let served = serve(base, &base.cache, How { lazy, collect: true, ..How::default() });
            assert_eq!((served.refused, served.unread), (None, Vec::new()), "{}", base.name);
            assert!(served.content == base.whole, "{}", base.name);
        }
    }
}
