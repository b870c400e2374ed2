//! Reads of a walk: every sector once, and large requests for metadata that lies together.

mod support;

use support::build::{Numbers, build};
use support::{MemDevice, cases, run};
use ubcache_env::SectorRange;
use ubcache_offline::{
    CheckOptions, TargetState, View, check, dump_for_restore, read_dump, restore, walk,
};

const EXTENTS: u64 = 60_000;

/// A set with adjacent nodes of 4 KiB: the worst case for a reader that reads them one by one.
fn a_set_with_its_nodes_together() -> MemDevice {
    let numbers = Numbers {
        bucket_sectors: 8,
        block_sectors: 1,
        buckets: 1300,
        volumes: 1,
        extents: 0,
        keys_in_a_leaf: 8,
        seed: 1,
    };
    let empty = MemDevice::new(build(&numbers).cache);
    let mut lines: Vec<String> = Vec::new();
    run(dump_for_restore(
        &empty,
        |line| {
            lines.push(line.to_owned());
            Ok(())
        },
        &(),
    ))
    .expect("a dump");
    let end = lines.pop().expect("a last line");
    lines.extend((0..EXTENTS).map(|number| {
        let sector = 16 + number * 2;
        format!(r#"{{"type":"extent","volume":0,"sector":{sector},"sectors":1,"dirty":false}}"#)
    }));
    lines.push(end.replace(r#""extents":0"#, &format!(r#""extents":{EXTENTS}"#)));
    let dumped = read_dump(lines.as_slice()).expect("a dump");
    let target = MemDevice::new(vec![0; dumped.device_sectors as usize * 512]);
    run(restore(&dumped, lines.as_slice(), &target, &TargetState::new_file(), &())).expect("a set");
    MemDevice::new(target.bytes())
}

#[test]
fn adjacent_nodes_are_read_once_in_one_request() {
    let cache = a_set_with_its_nodes_together();
    let mut nodes = Vec::new();
    let view = run(walk(&cache, &mut Nodes(&mut nodes), &())).expect("a set");
    assert_eq!(view.extents.len() as u64, EXTENTS);
    let cache = MemDevice::new(cache.bytes());
    assert!(run(check(&cache, &[], None, CheckOptions::default())).report.is_clean());
    let mut reads = cache.reads();
    let of_nodes: Vec<SectorRange> = reads
        .iter()
        .filter(|read| nodes.iter().any(|node: &SectorRange| node.overlaps(read)))
        .copied()
        .collect();
    let (count, bytes) =
        (of_nodes.len() as u64, of_nodes.iter().map(SectorRange::bytes).sum::<u64>());
    println!(
        "{} nodes of 4096 bytes in {count} reads of {} bytes on average",
        nodes.len(),
        bytes / count
    );
    assert!(nodes.len() > 300);
    assert_eq!(bytes, nodes.iter().map(SectorRange::bytes).sum::<u64>(), "nothing but the nodes");
    assert!(bytes / count >= 256 << 10);
    reads.sort_by_key(|read| read.start);
    for pair in reads.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{} is read twice", pair[1]);
    }
}

struct Nodes<'a>(&'a mut Vec<SectorRange>);

impl ubcache_offline::Visitor for Nodes<'_> {
    fn node(&mut self, visit: &ubcache_offline::NodeVisit<'_>) {
        let at = visit.key.pointer().expect("a place").offset;
        self.0.push(SectorRange::new(at, u64::from(visit.key.sectors)));
    }
}

/// A read that fails takes only the node with it that can't be read.
#[test]
fn unreadable_node_leaves_its_neighbours_readable() {
    let cache = a_set_with_its_nodes_together();
    let mut nodes = Vec::new();
    run(walk(&cache, &mut Nodes(&mut nodes), &())).expect("a set");
    let bad = nodes[nodes.len() / 2];
    cache.fail_reads_of(bad.start);
    let mut left = Vec::new();
    let view = run(walk(&cache, &mut Nodes(&mut left), &())).expect("a set");
    assert_eq!((left.len(), view.lost.len()), (nodes.len() - 1, 1));
    assert!(!left.contains(&bad));
    // The same holds without a visitor of leaves.
    assert_same(&view, &run(walk(&cache, &mut (), &())).expect("a set"));
}

fn assert_same(view: &View, other: &View) {
    assert_eq!(view.extents, other.extents);
    assert_eq!(view.buckets, other.buckets);
    assert_eq!(view.lost, other.lost);
    assert_eq!((view.nodes, view.complete), (other.nodes, other.complete));
}

/// Leaves take the fast path if no visitor needs them: the findings are the same.
#[test]
fn walk_without_a_visitor_has_the_same_findings() {
    let mut extents = 0;
    for case in cases() {
        let cache = MemDevice::new(case.cache.clone());
        let mut nodes = Vec::new();
        let view = run(walk(&cache, &mut Nodes(&mut nodes), &())).expect("a set");
        assert_same(&view, &run(walk(&cache, &mut (), &())).expect("a set"));
        extents += view.extents.len();
    }
    assert!(extents > 1000, "{extents}");
}
