//! The native format of systemd's journal: a datagram for each entry, a `FIELD=value` a line.
//!
//! Own code, of few lines, as the crates for it send from the thread that logs: there a journal
//! that is stuck would stop the device.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::plain::plain;

/// Begin of the names of threads with a set each; its name follows.
pub const THREAD_OF_SET: &str = "set ";

/// Formats events for the journal. Fields of an event are called `UBCACHE_NAME`.
pub struct Journald;

impl<S, N> FormatEvent<S, N> for Journald
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let priority = match *metadata.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut entry = Entry::default();
        event.record(&mut entry);
        let thread = std::thread::current();
        if let Some(set) = thread.name().and_then(|name| name.strip_prefix(THREAD_OF_SET)) {
            entry.add_named("set_name", set);
        }
        // A reader of the journal sees the message only.
        writeln!(writer, "MESSAGE={}{}", entry.message, entry.summary)?;
        writeln!(writer, "PRIORITY={priority}\nSYSLOG_IDENTIFIER=ubcache")?;
        writeln!(writer, "SYSLOG_PID={}\nTARGET={}", std::process::id(), metadata.target())?;
        writer.write_str(&entry.fields)
    }
}

#[derive(Default)]
struct Entry {
    message: String,
    /// The fields behind the message.
    summary: String,
    /// The fields, a line each.
    fields: String,
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

impl Entry {
    /// Values have no line ends, so that none needs the form with a length.
    fn add(&mut self, field: &Field, value: &str) {
        let value = plain(value, false);
        let name = field.name();
        if name == "message" {
            self.message = value.into_owned();
            return;
        }
        self.put(name, &value);
    }

    /// A field that is not one of the event.
    fn add_named(&mut self, name: &str, value: &str) {
        self.put(name, &plain(value, false));
    }

    fn put(&mut self, name: &str, value: &str) {
        let _ = write!(self.summary, " {name}={value}");
        let upper: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect();
        let _ = writeln!(self.fields, "UBCACHE_{upper}={value}");
    }
}
