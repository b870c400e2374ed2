//! `ubcache top`: what every volume does at the moment, again and again.
//!
//! | module | holds |
//! |---|---|
//! | here | the command, and the table as text |
//! | `rows` | what happened between two reports |
//! | `screen` | the table in a terminal, and its keys |

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use ubcache_daemon::Failure;
use ubcache_daemon::served::report::Report;
use ubcache_daemon::size::show_size;

use self::rows::{Column, Row, rows, sort};
use super::choose::Daemon;
use super::status::look;
use super::{print, visible};

mod rows;
mod screen;

/// Show live what each volume does: throughput, hit ratio, latencies, dirty data
///
/// Keys: n, r, w, h, l, k and d sort by name, read, written, hits, latency of reads, latency of
/// writes, dirty data; the same key again reverses the order; q ends it. Where standard output is
/// no terminal, one table is printed.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache top")]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Print one table, of one interval, and end
    #[arg(long)]
    once: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let interval = Duration::from_secs(args.interval);
    let mut looks = Looks::begin(args)?;
    if args.once || !std::io::stdout().is_terminal() {
        std::thread::sleep(interval);
        let mut rows = looks.next()?;
        sort(&mut rows, Column::Name, false);
        return print(&text(&rows));
    }
    screen::run(&mut looks, interval)
}

/// Reports, one after the other.
struct Looks<'a> {
    args: &'a Args,
    latest: (Instant, Report),
}

impl<'a> Looks<'a> {
    fn begin(args: &'a Args) -> Result<Looks<'a>, Failure> {
        let (report, _) = look(&args.daemon)?;
        Ok(Looks { args, latest: (Instant::now(), report) })
    }

    /// The rows of the time since the look before.
    fn next(&mut self) -> Result<Vec<Row>, Failure> {
        let (report, _) = look(&self.args.daemon)?;
        let now = Instant::now();
        let (before, former) = std::mem::replace(&mut self.latest, (now, report));
        Ok(rows(&former, &self.latest.1, now - before))
    }
}

const HEADERS: [&str; 11] = [
    "volume",
    "mode",
    "read/s",
    "reads/s",
    "write/s",
    "writes/s",
    "hits",
    "bypass",
    "read p50/p99",
    "write p50/p99",
    "dirty",
];

/// The cells of a row, in the order of the headers.
fn cells(row: &Row) -> [String; HEADERS.len()] {
    let percent =
        |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{share:.0}%"));
    let latency = |latency: Option<(u64, u64)>| {
        latency.map_or_else(|| "-".to_owned(), |(p50, p99)| format!("{}/{}", time(p50), time(p99)))
    };
    [
        visible(&row.name),
        row.mode.clone(),
        show_size(row.read_bytes as u64),
        format!("{:.0}", row.reads),
        show_size(row.written_bytes as u64),
        format!("{:.0}", row.writes),
        percent(row.hit_percent),
        percent(row.bypass_percent),
        latency(row.read_ns),
        latency(row.write_ns),
        show_size(row.dirty_bytes),
    ]
}

/// A time in three digits or less.
fn time(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{}us", ns.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{}ms", ns.div_ceil(1_000_000)),
        _ => format!("{}s", ns.div_ceil(1_000_000_000)),
    }
}

/// Widths that the columns need.
fn widths(rows: &[Row]) -> [usize; HEADERS.len()] {
    let mut widths = HEADERS.map(|header| header.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(cells(row)) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths
}

/// The table as text.
fn text(rows: &[Row]) -> String {
    let widths = widths(rows);
    let line = |cells: [String; HEADERS.len()]| {
        let mut line = String::new();
        for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
            // Words to the left, numbers to the right.
            line +=
                &if index < 2 { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = line(HEADERS.map(str::to_owned));
    rows.iter().for_each(|row| text += &line(cells(row)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_line_for_each_volume() {
        let rows = [
            Row { name: "data".into(), mode: "writeback".into(), ..Row::default() },
            Row {
                name: "a\nb".into(),
                read_bytes: 4096.0,
                read_ns: Some((1280, 5_000_000)),
                hit_percent: Some(99.6),
                ..Row::default()
            },
        ];
        let text = text(&rows);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("2us/5ms") && text.contains("100%"), "{text}");
    }
}
