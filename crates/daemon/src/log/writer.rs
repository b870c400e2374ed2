//! The queue of lines and the thread that writes them.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::limit::{Limit, STATE, WINDOW};
use super::plain::plain;

/// Lines that may wait to be read.
const QUEUE_LINES: usize = 1024;
/// Stack of the thread, which formats a line now and then.
const STACK_BYTES: usize = 256 << 10;

/// Destination of lines.
pub enum Sink {
    /// Standard error, with or without colours.
    Stderr { ansi: bool },
    /// A socket that takes a datagram for each entry.
    Journal { socket: UnixDatagram, path: PathBuf },
}

impl Sink {
    /// A journal that answers.
    pub fn journal(path: &Path) -> std::io::Result<Sink> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // Connected anew by every line: the journal may be started again meanwhile.
        let socket = UnixDatagram::unbound()?;
        Ok(Sink::Journal { socket, path: path.to_owned() })
    }

    /// Writes a line; blocks until it is read. False: it can't be written.
    fn write(&self, line: &str) -> bool {
        match self {
            Sink::Stderr { ansi } => {
                let text = line.strip_suffix('\n').unwrap_or(line);
                write_stderr(&format!("{}\n", plain(text, *ansi)))
            }
            Sink::Journal { socket, path } => socket.send_to(line.as_bytes(), path).is_ok(),
        }
    }
}

fn write_stderr(text: &str) -> bool {
    std::io::stderr().lock().write_all(text.as_bytes()).is_ok()
}

/// An entry of the queue.
enum Entry {
    /// A line of the log.
    Line(String),
    /// Text for standard error, as it is.
    Print(String),
    /// Request to log what was suppressed.
    Count,
}

#[derive(Default)]
struct Shared {
    /// Lines that found the queue full.
    dropped: AtomicU64,
    /// Lines that could not be written: standard error is closed, or the journal is gone.
    unwritten: AtomicU64,
    queued: AtomicU64,
    written: Mutex<u64>,
    progress: Condvar,
}

/// The log's end of the queue.
pub struct Writer {
    /// `None`: no thread could be started, and lines are written at once.
    queue: Option<SyncSender<Entry>>,
    shared: Arc<Shared>,
    sink: Arc<Sink>,
    limit: Limit,
}

impl Writer {
    /// Starts the thread.
    pub fn start(sink: Sink, limit: Limit) -> Writer {
        let (sender, receiver) = sync_channel(QUEUE_LINES);
        let (shared, sink) = (Arc::<Shared>::default(), Arc::new(sink));
        let thread =
            Thread { shared: shared.clone(), sink: sink.clone(), limit: limit.clone(), receiver };
        let started = std::thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || thread.run());
        Writer { queue: started.is_ok().then_some(sender), shared, sink, limit }
    }

    /// Lines lost so far.
    pub fn dropped(&self) -> u64 {
        let Shared { dropped, unwritten, .. } = &*self.shared;
        dropped.load(Ordering::Relaxed) + unwritten.load(Ordering::Relaxed)
    }

    /// A line to be written by the formatter.
    pub fn line(&self) -> Line<'_> {
        Line(self)
    }

    fn send(&self, entry: Entry) {
        let Some(queue) = &self.queue else {
            let written = match &entry {
                Entry::Line(line) => self.sink.write(line),
                Entry::Print(text) => write_stderr(text),
                Entry::Count => true,
            };
            if !written {
                self.shared.unwritten.fetch_add(1, Ordering::Relaxed);
            }
            return;
        };
        let is_line = !matches!(entry, Entry::Count);
        if queue.try_send(entry).is_ok() {
            self.shared.queued.fetch_add(1, Ordering::Relaxed);
        } else if is_line {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Prints to standard error. False: it is up to the caller.
    pub fn print(&self, text: &str) -> bool {
        self.send(Entry::Print(text.to_owned()));
        true
    }

    /// Has everything written, if somebody reads it in time.
    pub fn finish(&self, patience: Duration) {
        if self.queue.is_none() {
            return count_suppressed(&self.limit, true);
        }
        self.send(Entry::Count);
        let end = Instant::now() + patience;
        let mut written = self.shared.written.lock().unwrap_or_else(PoisonError::into_inner);
        // Read again each time: the count of what was suppressed is queued by the thread.
        while *written < self.shared.queued.load(Ordering::Relaxed) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.progress.wait_timeout(written, left);
            written = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One line on its way into the queue.
pub struct Line<'a>(&'a Writer);

impl Write for Line<'_> {
    /// The formatter hands over a whole line.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.send(Entry::Line(String::from_utf8_lossy(bytes).into_owned()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Thread {
    shared: Arc<Shared>,
    sink: Arc<Sink>,
    limit: Limit,
    receiver: Receiver<Entry>,
}

impl Thread {
    fn run(self) {
        let mut dropped_before = 0;
        // A line is suppressed at most a window after one that was not.
        let mut window = None;
        loop {
            let entry = match self.receiver.try_recv() {
                Ok(entry) => Ok(entry),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    // All that waited has been read: the log flows.
                    let dropped = self.shared.dropped.load(Ordering::Relaxed);
                    if dropped > dropped_before {
                        say_dropped(dropped - dropped_before);
                        dropped_before = dropped;
                        continue;
                    }
                    let due = self.limit.next(Instant::now());
                    if due == Some(Duration::ZERO) {
                        count_suppressed(&self.limit, false);
                        continue;
                    }
                    self.receive(due.or(window))
                }
            };
            match entry {
                Ok(entry) => {
                    self.carry_out(entry);
                    window = Some(WINDOW);
                }
                Err(RecvTimeoutError::Timeout) => window = None,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn receive(&self, wait: Option<Duration>) -> Result<Entry, RecvTimeoutError> {
        match wait {
            Some(wait) => self.receiver.recv_timeout(wait),
            None => self.receiver.recv().map_err(RecvTimeoutError::from),
        }
    }

    fn carry_out(&self, entry: Entry) {
        let written = match &entry {
            Entry::Line(line) => self.sink.write(line),
            Entry::Print(text) => write_stderr(text),
            Entry::Count => {
                count_suppressed(&self.limit, true);
                true
            }
        };
        if !written {
            self.shared.unwritten.fetch_add(1, Ordering::Relaxed);
        }
        *self.shared.written.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.shared.progress.notify_all();
    }
}

fn say_dropped(lines: u64) {
    tracing::warn!(
        target: STATE,
        lines,
        "lines of the log were dropped, as nobody read them in time"
    );
}

/// Logs the number of lines that were suppressed, of the windows that are over or of all.
fn count_suppressed(limit: &Limit, all: bool) {
    for suppressed in limit.take(Instant::now(), all) {
        tracing::warn!(
            target: STATE,
            lines = suppressed.lines,
            "more lines of this kind were suppressed: {}",
            suppressed.message
        );
    }
}
