//! Allocations of the NBD server and the engine together, counted.

use ubcache_bench::allocations::{Allocations, Counting};
use ubcache_bench::served::Server;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations for a hit, at this many requests at a time.
fn allocations_per_hit(depth: u64) -> f64 {
    let batches = 10_000 / depth;
    let server = Server::new(depth);
    server.serve(batches);
    let warm = Allocations::now();
    server.serve(batches);
    let allocated = Allocations::now().since(warm);
    server.end();
    allocated.count as f64 / (batches * depth) as f64
}

#[test]
fn hits_cost_one_allocation_for_each_send_of_several_replies() {
    let single = allocations_per_hit(1);
    assert!(single <= 0.01, "{single} allocations for a hit that is answered alone");
    // Sends end at 64 KiB: two for 32 replies of 4 KiB.
    let deep = allocations_per_hit(32);
    assert!(deep <= 2.1 / 32.0, "{deep} allocations for a hit that is answered with 31 others");
}
