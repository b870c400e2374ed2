//! `ubcache metrics`: the numbers of `status` for Prometheus.

use std::io::Write as _;
use std::path::PathBuf;

use ubcache_daemon::Failure;
use ubcache_daemon::served::metrics::{open_metrics, prometheus_text};

use super::cannot_print;
use super::choose::Daemon;
use super::new_file::NewFile;
use super::status::look;

/// Print the numbers of all daemons as metrics, for Prometheus
///
/// Totals count from the start of a daemon. With --out a timer or cron job leaves them where the
/// textfile collector of node_exporter finds them; the file is replaced as a whole.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache metrics --format prometheus \
    --out /var/lib/prometheus/node-exporter/ubcache.prom")]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// Text format
    #[arg(long, value_enum, default_value_t = Format::Openmetrics)]
    format: Format,
    /// Write them to this file instead of standard output
    #[arg(short = 'o', long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(clap::ValueEnum, Copy, Clone, Debug)]
enum Format {
    /// OpenMetrics 1.0
    Openmetrics,
    /// The text format of Prometheus 0.0.4, for node_exporter and promtool
    Prometheus,
}

/// Runs the command. Daemons that answer are shown, also if another one does not.
pub fn run(args: &Args) -> Result<(), Failure> {
    let (report, unknown) = look(&args.daemon)?;
    let text = match args.format {
        Format::Openmetrics => open_metrics(&report),
        Format::Prometheus => prometheus_text(&report),
    };
    match &args.out {
        Some(path) => {
            let mut file = NewFile::create(path, true, &[])?;
            file.write(text.as_bytes()).map_err(|error| file.cannot_write(&error))?;
            file.finish()?;
        }
        None => {
            let mut out = std::io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                // The reader has seen enough.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                printed => printed.map_err(|error| cannot_print(&error))?,
            }
        }
    }
    unknown.map_or(Ok(()), Err)
}
