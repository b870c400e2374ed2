//! The log: lines leave the process from a thread of their own, so that nobody who fails to read
//! them stops a block device.
//!
//! ```text
//!  set's thread ──▶ filter ──▶ limit ──▶ format ──▶ queue ──▶ log thread ──▶ standard error
//!                  UBCACHE_LOG                    (full: dropped            or journald
//!                                                  and counted)
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `limit` | lines that come too often are suppressed, and counted |
//! | `writer` | the queue, the thread, the count of dropped lines |
//! | `journald` | the native format of systemd's journal |
//! | `plain` | text without control characters |

mod journald;
mod limit;
mod plain;
mod writer;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::journald::Journald;
pub use self::journald::THREAD_OF_SET;
use self::limit::Limit;
pub use self::limit::STATE;
use self::writer::{Sink, Writer};
use crate::failure::Failure;

/// Socket of journald.
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// Longest time that the end of the process waits for somebody to read the log.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Longest time that another program waits for it: clients wait meanwhile.
const LINES_BEFORE: Duration = Duration::from_millis(200);

/// Form of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Format {
    /// A line of text for each event, to standard error.
    Text,
    /// A JSON object a line, to standard error.
    Json,
    /// Entries with fields, to the socket of systemd's journal.
    Journald(PathBuf),
}

static WRITER: OnceLock<Writer> = OnceLock::new();

/// Starts the log. `UBCACHE_LOG` says what is logged. Does nothing if there is a log already.
pub fn start(format: &Format) -> Result<(), Failure> {
    let filter = EnvFilter::try_from_env("UBCACHE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    let sink = match format {
        Format::Text | Format::Json => Sink::Stderr { ansi },
        Format::Journald(path) => Sink::journal(path).map_err(|error| no_journal(path, error))?,
    };
    let limit = Limit::default();
    let writer = WRITER.get_or_init(|| Writer::start(sink, limit.clone()));
    let lines = move || writer.line();
    let all = tracing_subscriber::registry().with(filter).with(limit);
    let layer = tracing_subscriber::fmt::layer().with_writer(lines);
    // A subscriber that is there already does as well.
    let _ = match format {
        Format::Text => all.with(layer.with_ansi(ansi)).try_init(),
        Format::Json => all.with(layer.json().flatten_event(true)).try_init(),
        Format::Journald(_) => all.with(layer.with_ansi(false).event_format(Journald)).try_init(),
    };
    Ok(())
}

fn no_journal(path: &Path, error: std::io::Error) -> Failure {
    Failure::usage("--log-format journald", format_args!("{}: {error}", path.display()))
        .expected("the socket of systemd's journal")
        .advice("--log-format text or json, which go to standard error")
}

/// Lines lost since the start, as nobody read them in time.
pub fn dropped_lines() -> u64 {
    WRITER.get().map_or(0, Writer::dropped)
}

/// Prints text for people to standard error: by the log's thread, if the log goes there.
pub fn print(text: &str) -> bool {
    WRITER.get().is_some_and(|writer| writer.print(text))
}

/// Waits a moment for the last lines to be read. Before another program goes on.
pub(crate) fn finish_quickly() {
    if let Some(writer) = WRITER.get() {
        writer.finish(LINES_BEFORE);
    }
}

/// Waits for the last lines to be read, for a second at most. For the end of the process.
pub fn finish() {
    if let Some(writer) = WRITER.get() {
        writer.finish(LAST_LINES);
    }
}
