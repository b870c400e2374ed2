//! Plans that failed once (crates/sim/seeds) pass. Each begins with its story.

use std::path::Path;

use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::{Plan, RunOptions, run_plan};

#[test]
fn kept_plans_pass() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut failed = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&directory).expect("the directory of the seeds") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.ends_with(".plan") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a plan is a text");
        assert!(text.starts_with("# "), "{name} has no story");
        let plan: Plan = text.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
        let outcome = run_plan::<CacheSystem>(&plan, RunOptions::default());
        count += 1;
        if let Some(violation) = outcome.violations.first() {
            failed.push(format!("{name}: {}", violation.report));
        }
    }
    assert!(count > 0, "no plans in {}", directory.display());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
