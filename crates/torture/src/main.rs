//! `ubcache-torture`: damage and random input, from seeds.
#![allow(clippy::disallowed_methods, reason = "runs are bounded by the clock of the real world")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use ubcache_torture::damage::damage;
use ubcache_torture::fuzz::{TARGETS, Target};
use ubcache_torture::judge::{Verdict, judge};
use ubcache_torture::mutate::{corpus, input, run};
use ubcache_torture::sets::{SMALL, bases, of_the_engine};

/// An input that takes longer is taken for a loop.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Damage and random input for the offline tools and the parsers
#[derive(Parser)]
#[command(name = "ubcache-torture")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Damage six sets, repair them, and compare: one damage of each set for each seed
    Damage {
        /// Seeds to run
        #[arg(long, value_name = "FROM..TO", default_value = "0..300", value_parser = span)]
        seeds: (u64, u64),
        /// Only sets whose name has this in it
        #[arg(long, default_value = "")]
        set: String,
        /// One line for each damage
        #[arg(long)]
        verbose: bool,
    },
    /// Run fuzz targets over their corpus, and then over changed inputs
    Fuzz {
        /// Targets; all, if none is named
        targets: Vec<String>,
        /// Duration of each target
        #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = time)]
        duration: Duration,
        /// Seed of the changes to inputs
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The directory with a corpus for each target
        #[arg(long, default_value = "fuzz/corpus")]
        corpus: PathBuf,
        /// Only this file
        #[arg(long, conflicts_with = "corpus")]
        input: Option<PathBuf>,
    },
    /// Make the small sets of the target `check` anew
    Sets {
        /// Directory for the sets
        directory: PathBuf,
    },
}

fn span(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("expected FROM..TO")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text} is not a number"));
    Ok((number(from)?, number(to)?))
}

fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 =
        number.parse().map_err(|_| format!("{text} is not a time; expected 60s or 5m"))?;
    match unit {
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(60 * number)),
        "h" => Ok(Duration::from_secs(3600 * number)),
        _ => Err(format!("{text} is not a time; expected 60s or 5m")),
    }
}

fn main() -> ExitCode {
    let good = match Args::parse().task {
        Task::Damage { seeds, set, verbose } => damages(seeds, &set, verbose),
        Task::Fuzz { targets, duration, seed, corpus, input } => {
            if let Some(wrong) =
                targets.iter().find(|name| !TARGETS.iter().any(|target| target.name == **name))
            {
                eprintln!("there is no target {wrong}");
                return ExitCode::from(2);
            }
            let wanted = |target: &&Target| {
                targets.is_empty() || targets.iter().any(|name| name == target.name)
            };
            TARGETS.iter().filter(wanted).all(|target| match &input {
                Some(path) => replay(*target, path),
                None => fuzz(*target, &corpus, duration, seed),
            })
        }
        Task::Sets { directory } => sets(&directory),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn damages((from, to): (u64, u64), set: &str, verbose: bool) -> bool {
    let mut counts: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
    let mut failed = 0;
    let bases = bases();
    for base in bases.iter().filter(|base| base.name.contains(set)) {
        for seed in from..to {
            let mut image = base.cache.clone();
            let done = damage(base, &mut image, seed);
            let verdict = judge(base, &image, !done.unnoticeable, true);
            if verbose || verdict.is_err() {
                println!("{}, seed {seed}, {}: {verdict:?}", base.name, done.words.join(" and "));
            }
            match verdict {
                Ok(verdict) => done
                    .words
                    .iter()
                    .for_each(|word| counts.entry(word).or_default()[index(verdict)] += 1),
                Err(_) => failed += 1,
            }
        }
    }
    println!("damage: harmless, repaired, repaired but not in place, can't be repaired");
    for (word, [harmless, repaired, copied, not]) in &counts {
        println!("{word}: {harmless}, {repaired}, {copied}, {not}");
    }
    println!("{} damages a set, {failed} failed", to.saturating_sub(from));
    failed == 0
}

fn index(verdict: Verdict) -> usize {
    match verdict {
        Verdict::Harmless => 0,
        Verdict::Repaired => 1,
        Verdict::OnlyCopied => 2,
        Verdict::Unrepairable => 3,
    }
}

fn replay(target: Target, path: &Path) -> bool {
    let Ok(bytes) = std::fs::read(path) else {
        eprintln!("{} can't be read", path.display());
        return false;
    };
    match run(target, &bytes) {
        Ok(()) => println!("{}: nothing wrong with {}", target.name, path.display()),
        Err(panic) => println!("{}: {}: {panic}", target.name, path.display()),
    }
    run(target, &bytes).is_ok()
}

fn fuzz(target: Target, corpora: &Path, duration: Duration, seed: u64) -> bool {
    let directory = corpora.join(target.name);
    let corpus = match corpus(&directory) {
        Ok(corpus) => corpus,
        Err(error) => {
            eprintln!("{}: {error}", directory.display());
            return false;
        }
    };
    for (path, bytes) in &corpus {
        if let Err(panic) = run(target, bytes) {
            println!("{}: {}: {panic}", target.name, path.display());
            return false;
        }
    }
    let begin = Instant::now();
    let now = AtomicU64::new(0);
    let ended = AtomicU64::new(0);
    std::thread::scope(|scope| {
        // Watchdog: prints the input that never ends.
        scope.spawn(|| {
            let (mut last, mut since) = (u64::MAX, Instant::now());
            while ended.load(Ordering::Relaxed) == 0 {
                std::thread::sleep(Duration::from_millis(200));
                let number = now.load(Ordering::Relaxed);
                if number != last {
                    (last, since) = (number, Instant::now());
                }
                if since.elapsed() > WATCHDOG {
                    let bytes = input(target, &corpus, seed, number);
                    println!("{}: does not end: {}", target.name, save(target, &bytes).display());
                    std::process::exit(1);
                }
            }
        });
        let mut number = 0;
        let mut good = true;
        while good && begin.elapsed() < duration {
            now.store(number, Ordering::Relaxed);
            let bytes = input(target, &corpus, seed, number);
            if let Err(panic) = run(target, &bytes) {
                println!("{}: {panic}: {}", target.name, save(target, &bytes).display());
                good = false;
            }
            number += 1;
        }
        ended.store(1, Ordering::Relaxed);
        println!(
            "{}: {} inputs of the corpus, {number} changed ones from seed {seed} in {} s",
            target.name,
            corpus.len(),
            begin.elapsed().as_secs()
        );
        good
    })
}

/// Keeps an input that failed.
fn save(target: Target, bytes: &[u8]) -> PathBuf {
    let path =
        std::env::temp_dir().join(format!("ubcache-fuzz-{}-{}", target.name, std::process::id()));
    if let Err(error) = std::fs::write(&path, bytes) {
        println!("{}: {error}", path.display());
    }
    path
}

/// Packs the small sets, with the program `xz`.
fn sets(directory: &Path) -> bool {
    SMALL.iter().all(|(name, recipe)| {
        let base = of_the_engine(name, *recipe);
        println!(
            "{name}: {} nodes, {} journal entries, {} dirty bytes",
            base.parts.nodes.len(),
            base.parts.ring.len(),
            base.parts.dirty.iter().map(ExactSizeIterator::len).sum::<usize>()
        );
        [("cache", &base.cache), ("backing", &base.backing)].iter().all(|(kind, image)| {
            let path = directory.join(format!("{name}.{kind}"));
            let written = std::fs::write(&path, image.get(0..image.len())).is_ok();
            let packed = Command::new("xz").args(["-9e", "--force"]).arg(&path).status();
            written && packed.is_ok_and(|status| status.success())
        })
    })
}
