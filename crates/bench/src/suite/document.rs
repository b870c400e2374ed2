//! docs/generated/performance.md: tables between markers, all other text is written by hand. And
//! its pictures.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use super::{Line, Options, Results, Row};
use crate::nbd::load::PERCENTILES;

const COLOURS: &[&str] = &["#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#7f7f7f", "#ff7f0e"];

/// Writes sections and pictures below `docs`.
pub fn write(docs: &Path, options: &Options, results: &Results) -> Result<(), String> {
    let file = docs.join("performance.md");
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let mut text = std::fs::read_to_string(&file).map_err(|error| failed(&file, error))?;
    text = with_section(&text, "machine", &machine(options))?;
    text = with_section(&text, "goals", &goals(&results.rows))?;
    for table in &results.tables {
        text = with_section(&text, table.section, &table.text)?;
    }
    std::fs::write(&file, text).map_err(|error| failed(&file, error))?;
    let pictures = docs.join("performance");
    std::fs::create_dir_all(&pictures).map_err(|error| failed(&pictures, error))?;
    for (name, picture) in
        [("throughput.svg", throughput(results)), ("latency.svg", latency(results))]
    {
        let file = pictures.join(name);
        std::fs::write(&file, picture).map_err(|error| failed(&file, error))?;
    }
    Ok(())
}

/// Everything as text.
pub fn show(options: &Options, results: &Results) -> String {
    let mut text = format!("{}\n{}\n", machine(options), goals(&results.rows));
    for table in &results.tables {
        let _ = writeln!(text, "{}", table.text);
    }
    text
}

/// Replaces what stands between the two markers of a section.
fn with_section(text: &str, name: &str, section: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- begin: {name} -->\n"), format!("<!-- end: {name} -->"));
    let found =
        text.split_once(&begin).and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)));
    let (head, tail) = found.ok_or_else(|| format!("there is no section \"{}\"", begin.trim()))?;
    Ok(format!("{head}{begin}\n{}\n\n{end}{tail}", section.trim_end()))
}

fn goals(rows: &[Row]) -> String {
    let mut text =
        "| what | goal | reached | | beside it | ratio | command |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for row in rows {
        let met = match row.met {
            Some(true) => "✓",
            Some(false) => "✗",
            None => "?",
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {met} | {} | {} | {} |",
            cell(&row.what),
            cell(&row.goal),
            cell(&row.reached),
            cell(&row.peer),
            cell(&row.ratio),
            cell(&row.command)
        );
    }
    text
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.lines().next().unwrap_or("not installed").trim().to_owned()
}

fn machine(options: &Options) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map_or("?".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let existing =
        options.directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let file_system = Command::new("df").args(["--output=fstype"]).arg(existing).output();
    let file_system =
        file_system.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let rows = [
        (
            "processor",
            format!(
                "{}, {} of them",
                field(&cpus, "model name"),
                cpus.matches("processor\t").count()
            ),
        ),
        ("memory", field(&memory, "MemTotal")),
        ("kernel", said("uname", &["-srm"])),
        (
            "files of devices on",
            file_system.unwrap_or_default().lines().last().unwrap_or("?").trim().to_owned(),
        ),
        ("load of the machine at the end", read("/proc/loadavg").trim().to_owned()),
        ("peers", format!("{}, {}", said("nbdkit", &["--version"]), said("fio", &["--version"]))),
        ("ubcache", said("git", &["describe", "--always", "--dirty"])),
        (
            "run",
            format!(
                "`cargo xtask bench{}`: {} turns of {} s",
                if options.quick { " --quick" } else { "" },
                options.turns(),
                options.turn().as_secs()
            ),
        ),
    ];
    let mut text = "| | |\n|---|---|\n".to_owned();
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text
}

fn throughput(results: &Results) -> String {
    let labels: Vec<String> = results
        .throughput
        .first()
        .map(|line| {
            line.points.iter().map(|(queue_depth, _)| format!("{queue_depth:.0}")).collect()
        })
        .unwrap_or_default();
    picture(
        "Read hits of 4 KiB over NBD: thousands of requests a second over queue depth",
        &labels,
        &thousandths(&results.throughput),
        false,
    )
}

fn latency(results: &Results) -> String {
    let labels: Vec<String> =
        PERCENTILES.iter().map(|percentile| format!("{percentile} %")).collect();
    picture(
        "Read hits of 4 KiB over NBD, queue depth 32: latency in µs by percentile",
        &labels,
        &results.latency,
        true,
    )
}

fn thousandths(lines: &[Line]) -> Vec<Line> {
    let divided = |line: &Line| Line {
        name: line.name.clone(),
        points: line.points.iter().map(|&(x, y)| (x, y / 1e3)).collect(),
    };
    lines.iter().map(divided).collect()
}

/// Lines over labels that stand at equal distances.
fn picture(title: &str, labels: &[String], lines: &[Line], logarithmic: bool) -> String {
    let (left, top, width, height) = (72.0, 48.0, 640.0, 300.0);
    let scale = |y: f64| if logarithmic { y.max(0.1).log10() } else { y };
    let all = || lines.iter().flat_map(|line| line.points.iter().map(|&(_, y)| y));
    let most = all().fold(1.0, f64::max);
    let least = if logarithmic { all().fold(most, f64::min) } else { 0.0 };
    let (low, high) = match logarithmic {
        true => (scale(least).floor(), scale(most).ceil()),
        false => (0.0, most * 1.05),
    };
    let x = |index: usize| left + width * index as f64 / (labels.len().max(2) - 1) as f64;
    let y = |value: f64| top + height * (1.0 - (scale(value) - low) / (high - low).max(1e-9));
    let rows = lines.len().div_ceil(3) as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} \
         {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"24\" font-size=\"15\">{title}</text>\n",
        left + width + 32.0,
        top + height + 36.0 + 20.0 * rows
    );
    let ticks: Vec<f64> = match logarithmic {
        true => (low as i32..=high as i32).map(|power| 10_f64.powi(power)).collect(),
        false => (0..=5).map(|tick| most * f64::from(tick) / 5.0).collect(),
    };
    for tick in ticks {
        let _ = writeln!(
            text,
            "<line x1=\"{left}\" y1=\"{0:.1}\" x2=\"{1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{tick:.0}</text>",
            y(tick),
            left + width,
            left - 8.0,
            y(tick) + 4.0
        );
    }
    for (index, label) in labels.iter().enumerate() {
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            x(index),
            top + height + 20.0
        );
    }
    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points: Vec<String> = line
            .points
            .iter()
            .enumerate()
            .map(|(at, &(_, value))| format!("{:.1},{:.1}", x(at), y(value)))
            .collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            left + 220.0 * (index % 3) as f64,
            top + height + 44.0 + 20.0 * (index / 3) as f64,
            line.name
        );
    }
    text.push_str("</svg>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_changes_only_text_between_markers() {
        let text = "by hand\n<!-- begin: goals -->\nold\n<!-- end: goals -->\nby hand, too\n";
        let new = with_section(text, "goals", "| new |\n").expect("there is such a section");
        assert_eq!(
            new,
            "by hand\n<!-- begin: goals -->\n\n| new |\n\n<!-- end: goals -->\nby hand, too\n"
        );
        assert_eq!(with_section(&new, "goals", "| new |\n").as_deref(), Ok(new.as_str()));
        assert!(with_section(text, "engine", "").is_err());
    }

    #[test]
    fn every_section_of_a_run_is_in_the_document() {
        let docs = tempfile::tempdir().expect("a directory");
        let document = include_str!("../../../../docs/generated/performance.md");
        std::fs::write(docs.path().join("performance.md"), document).expect("a file");
        let options = Options {
            quick: true,
            directory: docs.path().join("devices"),
            ubcache: "ubcache".into(),
            trace: None,
            only: Vec::new(),
            environment: Vec::new(),
        };
        let table = |section| super::super::Table { section, text: format!("table of {section}") };
        let tables = vec![table("servers"), table("engine")];
        let results = Results { tables, ..Results::default() };
        write(docs.path(), &options, &results).expect("all sections are there");
        let written = std::fs::read_to_string(docs.path().join("performance.md")).expect("a file");
        assert!(written.contains("table of servers") && written.contains("table of engine"));
        for picture in ["throughput.svg", "latency.svg"] {
            assert!(
                document.contains(&format!("(performance/{picture})")),
                "the document shows {picture}"
            );
            assert!(docs.path().join("performance").join(picture).exists());
        }
    }

    #[test]
    fn plotted_lines_stay_inside_the_picture() {
        let line = |name: &str, points: &[f64]| Line {
            name: name.to_owned(),
            points: points.iter().map(|&y| (0.0, y)).collect(),
        };
        let lines = [line("a", &[1.0, 20.0, 3000.0]), line("b", &[0.5, 700.0, 99_999.0])];
        for logarithmic in [false, true] {
            let labels = ["1", "2", "3"].map(str::to_owned);
            let picture = picture("title", &labels, &lines, logarithmic);
            let points = picture
                .split("points=\"")
                .skip(1)
                .map(|rest| rest.split('"').next().expect("it ends"));
            let mut count = 0;
            for point in points.flat_map(|points| points.split(' ')) {
                let (x, y) = point.split_once(',').expect("two numbers");
                let (x, y): (f64, f64) =
                    (x.parse().expect("a number"), y.parse().expect("a number"));
                assert!((72.0..=712.0).contains(&x) && (48.0..=348.0).contains(&y), "{point}");
                count += 1;
            }
            assert_eq!(count, 6);
        }
    }
}
