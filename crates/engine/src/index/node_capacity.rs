//! Number of keys that a node takes.

use ubcache_format::Geometry;

/// Number of keys for which a node has bytes.
pub(super) fn node_room(geometry: &Geometry) -> usize {
    ((geometry.node_bytes() - 32) / 24) as usize
}

/// Number of keys beside which one node has room for one more change (N4), of no more records than
/// a step takes. `keys` is the most that a node gets, if that is limited.
pub(super) fn leaf_keys_max(
    geometry: &Geometry,
    step_records: usize,
    keys: Option<usize>,
) -> usize {
    // A step adds a key for each record, and the ends of the keys around it.
    let most = node_room(geometry).saturating_sub(step_records + 2).max(1);
    keys.map_or(most, |keys| most.min(4 * keys.max(8)))
}
