//! Options of a daemon as a process, of one set or of many: log, memory, status page.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ubcache_daemon::page::StatusPageOptions;
use ubcache_daemon::{Failure, log};

/// Options that `ubcache serve` and `ubcache daemon` have in common.
#[derive(clap::Args, Debug)]
pub(super) struct Process {
    /// Show a status page in browsers, read-only, and /v1/metrics for Prometheus
    #[arg(long, value_name = "ADDRESS:PORT")]
    status_page: Option<SocketAddr>,
    /// Readers of the status page have to know the token in this file; needed unless the address is
    /// a loopback one
    #[arg(long, value_name = "FILE")]
    status_token: Option<PathBuf>,
    /// Lock memory once used, so that it is not paged out: for clients on this machine, which may
    /// wait for the daemon when memory is short
    #[arg(long)]
    pub(super) lock_memory: bool,
    /// Form of the log: lines of text or JSON objects, to standard error, or entries with fields,
    /// to the socket of systemd's journal
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// The socket of systemd's journal
    #[arg(long, value_name = "PATH", hide = true, default_value = log::JOURNAL_SOCKET)]
    journal_socket: PathBuf,
}

impl Process {
    /// Starts the log.
    pub(super) fn start_log(&self) -> Result<(), Failure> {
        log::start(&self.log_format.form(&self.journal_socket))
    }

    /// The status page, if one is wanted.
    pub(super) fn status_page(&self) -> StatusPageOptions {
        StatusPageOptions { address: self.status_page, token: self.status_token.clone() }
    }
}

/// Form of the log.
#[derive(Copy, Clone, Debug, clap::ValueEnum)]
enum LogFormat {
    /// A line of text for each event
    Text,
    /// A JSON object for each event
    Json,
    /// systemd's journal
    Journald,
}

impl LogFormat {
    /// The form, with the socket of the journal.
    fn form(self, journal: &Path) -> log::Format {
        match self {
            LogFormat::Text => log::Format::Text,
            LogFormat::Json => log::Format::Json,
            LogFormat::Journald => log::Format::Journald(journal.to_owned()),
        }
    }
}
