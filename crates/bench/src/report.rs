//! Results of `replay`, as a table, JSON, and a picture.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::BLOCK_BYTES;
use crate::buckets::Counts;

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

    /// Blocks written to the cache for each block that clients read or write.
    fn amplification(&self) -> Option<f64> {
        self.buckets
            .map(|counts| counts.filled as f64 / (counts.reads + counts.writes).max(1) as f64)
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
                    "bucket_blocks_dropped_alive": row.buckets.map(|counts| counts.dropped),
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

    /// A picture: read hit ratio over cache size.
    pub fn svg(&self) -> String {
        let (left, top, width, height) = (64.0, 48.0, 640.0, 300.0);
        let most = self.rows.iter().map(|row| row.cache_blocks).max().unwrap_or(1).max(1) as f64;
        let x = |blocks: u64| left + width * blocks as f64 / most;
        let y = |share: f64| top + height * (1.0 - share);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} \
             {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{left}\" y=\"24\" font-size=\"15\">{}: share of reads answered by the \
             cache</text>\n",
            left + width + 24.0,
            top + height + 56.0,
            escape(&self.trace)
        );
        for tenth in 0..=5 {
            let share = f64::from(tenth) / 5.0;
            let _ = writeln!(
                text,
                "<line x1=\"{left}\" y1=\"{0:.1}\" x2=\"{1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{4:.0}%</text>\
                 <text x=\"{5:.1}\" y=\"{6}\" text-anchor=\"middle\">{7}</text>",
                y(share),
                left + width,
                left - 8.0,
                y(share) + 4.0,
                share * 100.0,
                left + width * share,
                top + height + 20.0,
                size(most * share * BLOCK_BYTES as f64)
            );
        }
        let lru = self.rows.iter().map(|row| (row.cache_blocks, row.lru)).collect();
        let buckets: Vec<(u64, f64)> = self
            .rows
            .iter()
            .filter_map(|row| Some((row.cache_blocks, row.bucket_hits()?)))
            .collect();
        for (index, (name, colour, points)) in
            [("LRU of 4 KiB blocks", "#1f77b4", lru), ("LRU of buckets", "#d62728", buckets)]
                .into_iter()
                .enumerate()
        {
            if points.is_empty() {
                continue;
            }
            let line: Vec<String> = points
                .iter()
                .map(|&(blocks, share)| format!("{:.1},{:.1}", x(blocks), y(share)))
                .collect();
            let _ = writeln!(
                text,
                "<polyline points=\"{left},{} \
                 {}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
                 <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}</text>",
                top + height,
                line.join(" "),
                left + 200.0 * index as f64,
                top + height + 44.0
            );
        }
        text.push_str("</svg>\n");
        text
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
