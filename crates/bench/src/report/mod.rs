//! Results of `replay`, as a table, JSON, and a picture.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::BLOCK_BYTES;
use crate::buckets::Counts;
use crate::through_engine::Replayed;

mod svg;

pub use svg::svg;

/// Result of the engine with a replacement policy.
#[derive(Clone, Debug)]
pub struct PolicyResult {
    /// Name of the policy.
    pub policy: String,
    /// Counts of the replay.
    pub counts: Replayed,
    /// Share of reads that the engine estimates to hit in such a cache; `None` where it saw too
    /// little.
    pub estimated_hits: Option<f64>,
}

/// A cache size, and what it would do.
#[derive(Clone, Debug)]
pub struct Row {
    /// Size of the cache in blocks.
    pub cache_blocks: u64,
    /// Share of the trace's footprint.
    pub of_footprint: f64,
    /// Share of reads that an LRU cache of single blocks answers.
    pub lru: f64,
    /// Counts of a cache of buckets; `None` where the trace was sampled.
    pub buckets: Option<Counts>,
    /// Results of the engine, by policy; the same policies in each row.
    pub engine: Vec<PolicyResult>,
}

/// A whole replay.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Name of the trace.
    pub trace: String,
    /// Requests in it.
    pub requests: u64,
    /// Bytes read and written by clients.
    pub read_bytes: u64,
    /// See there.
    pub written_bytes: u64,
    /// Different blocks; an estimate where the trace was sampled.
    pub footprint_blocks: u64,
    /// Share of blocks that were followed.
    pub rate: f64,
    /// Bytes of a bucket.
    pub bucket_bytes: u64,
    /// Rows by cache size, ascending.
    pub rows: Vec<Row>,
}

impl Row {
    fn bucket_hits(&self) -> Option<f64> {
        self.buckets.map(|counts| counts.read_hits as f64 / counts.reads.max(1) as f64)
    }

    /// A count of blocks for each block that clients read.
    fn per_read(&self, count: impl Fn(&Counts) -> u64) -> Option<f64> {
        self.buckets.map(|counts| count(&counts) as f64 / counts.reads.max(1) as f64)
    }

    /// Blocks written to the cache for each block that clients read or write.
    fn amplification(&self) -> Option<f64> {
        self.buckets
            .map(|counts| counts.filled as f64 / (counts.reads + counts.writes).max(1) as f64)
    }
}

impl PolicyResult {
    fn json(&self) -> Value {
        json!({
            "policy": self.policy,
            "read_hit_ratio": self.counts.hit_ratio(),
            "written_per_byte_read": self.counts.written_per_byte_read(),
            "fetched_per_byte_read": self.counts.fetched_per_byte_read(),
            "written_per_byte_wanted": self.counts.written_per_byte_wanted(),
            "device_bytes": self.counts.device_bytes,
            "bucket_bytes": self.counts.bucket_bytes,
            "estimated_read_hit_ratio": self.estimated_hits,
        })
    }
}

/// Bytes with a unit, for people.
fn size(bytes: f64) -> String {
    let mut value = bytes;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    format!("{value:.1} {unit}")
}

impl Replay {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{}: {} requests, {} read, {} written, footprint {}{}",
            self.trace,
            self.requests,
            size(self.read_bytes as f64),
            size(self.written_bytes as f64),
            size((self.footprint_blocks * BLOCK_BYTES) as f64),
            if self.rate < 1.0 { format!(", sampled at {:.4}", self.rate) } else { String::new() }
        );
        let _ = writeln!(
            text,
            "\n{:>12} {:>10} {:>12} {:>14} {:>16}",
            "cache", "footprint", "LRU blocks", "LRU buckets", "written to cache"
        );
        for row in &self.rows {
            let percent = |share: Option<f64>| {
                share.map_or("-".to_owned(), |share| format!("{:.1}%", share * 100.0))
            };
            let _ = writeln!(
                text,
                "{:>12} {:>9.1}% {:>12} {:>14} {:>16}",
                size((row.cache_blocks * BLOCK_BYTES) as f64),
                row.of_footprint * 100.0,
                percent(Some(row.lru)),
                percent(row.bucket_hits()),
                row.amplification().map_or("-".to_owned(), |it| format!("{it:.2}"))
            );
        }
        let _ = writeln!(
            text,
            "\nLRU blocks: reads that a cache of single 4 KiB blocks answers, writes are cached \
             too. LRU buckets: the same \
             with whole\nbuckets of {} evicted at once. Written to cache: bytes for each byte that \
             clients read or write.",
            size(self.bucket_bytes as f64)
        );
        text + &self.policies_table()
    }

    /// Policies side by side. Empty without results of the engine.
    fn policies_table(&self) -> String {
        let Some(policies) = self.rows.first().map(|row| &row.engine).filter(|it| !it.is_empty())
        else {
            return String::new();
        };
        let mut text = "\nThrough the engine, blocks of 4 KiB, writethrough: reads that hit, and \
             bytes written to the cache for\neach byte read. Estimate: the reads that `ubcache \
             advise` expects to hit with lru.\n\n"
            .to_owned();
        let _ =
            write!(text, "{:>12} {:>10} {:>10} {:>10}", "cache", "footprint", "device", "bucket");
        for of in policies {
            let _ = write!(text, " {:>16}", of.policy);
        }
        let _ = writeln!(text, " {:>9}", "estimate");
        for row in &self.rows {
            let _ = write!(
                text,
                "{:>12} {:>9.1}%",
                size((row.cache_blocks * BLOCK_BYTES) as f64),
                row.of_footprint * 100.0
            );
            if let Some(PolicyResult { counts, .. }) = row.engine.first() {
                let (device, bucket) = (counts.device_bytes as f64, counts.bucket_bytes as f64);
                let _ = write!(text, " {:>10} {:>10}", size(device), size(bucket));
            }
            for PolicyResult { counts, .. } in &row.engine {
                let hits = format!("{:.1}%", counts.hit_ratio() * 100.0);
                let _ = write!(text, " {hits:>9} {:>6.2}", counts.written_per_byte_read());
            }
            let estimate = row.engine.last().and_then(|of| of.estimated_hits);
            let estimate = estimate.map_or("-".to_owned(), |it| format!("{:.1}%", it * 100.0));
            let _ = writeln!(text, " {estimate:>9}");
        }
        text
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "cache_bytes": row.cache_blocks * BLOCK_BYTES,
                    "of_footprint": row.of_footprint,
                    "lru_read_hit_ratio": row.lru,
                    "bucket_read_hit_ratio": row.bucket_hits(),
                    "bucket_bytes_written_per_client_byte": row.amplification(),
                    "bucket_bytes_written_per_byte_read": row.per_read(|counts| counts.filled),
                    "bucket_bytes_fetched_per_byte_read": row.per_read(|counts| counts.fetched),
                    "bucket_blocks_dropped_alive": row.buckets.map(|counts| counts.dropped),
                    "engine": row.engine.iter().map(PolicyResult::json).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "trace": self.trace, "requests": self.requests, "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "footprint_bytes": self.footprint_blocks * BLOCK_BYTES,
            "sampling_rate": self.rate, "bucket_bytes": self.bucket_bytes, "sizes": rows,
        })
    }
}
