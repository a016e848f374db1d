//! `larder report` in every format, read by the programs it is made for.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use larder::digest::Sha256;
use serde_json::Value;

#[expect(dead_code, reason = "this lab has an inventory of its own")]
#[path = "support/program.rs"]
mod program;
#[path = "support/tool.rs"]
mod tool;

use program::Lab;
use tool::tool;

/// A store whose name needs escaping everywhere, and a plain one.
const INVENTORY: &str = r#"machine = "pc <1> & \"co\""

[stores]
plain = { layout = "folder", path = "~/plain" }
'we"ird\<b>' = { layout = "folder", path = "~/weird" }

[profiles.all]
artifacts = ["*"]

[machines.'pc <1> & "co"']
profile = "all"
"#;

/// Three files that are here, and one that is not.
fn lab() -> Lab {
    let file = |name: &str, store: &str, path: &str, bytes: &[u8]| {
        format!(
            "[[artifact]]\nname = \"{name}\"\nstore = '{store}'\nsource = \"local\"\nfile = [{{ path = '{path}', size = {}, sha256 = \"{}\" }}]\n",
            bytes.len(),
            Sha256::of(bytes)
        )
    };
    let manifest = [
        file("big", "plain", "big.bin", &[7; 300_000]),
        file("small", "plain", "sub/small.bin", &[8; 9_000]),
        file("odd:name+1", "we\"ird\\<b>", "a & <i>\"b\".bin", &[9; 50_000]),
        file("absent", "plain", "<script>.bin", &[1; 120_000]),
    ];
    let lab = Lab::new(INVENTORY, &manifest.concat());
    lab.write("home/plain/big.bin", [7; 300_000]);
    lab.write("home/plain/sub/small.bin", [8; 9_000]);
    lab.write("home/weird/a & <i>\"b\".bin", [9; 50_000]);
    lab
}

/// The lab after a run that has read everything, and after one byte has rotted.
fn rotten_lab() -> Lab {
    let lab = lab();
    assert_eq!(lab.run(&["verify"]).code, 3, "one file is missing");
    lab.write("home/plain/sub/small.bin", [&[8; 8_999][..], &[0]].concat());
    assert_eq!(lab.run(&["verify"]).code, 3);
    lab
}

#[test]
fn files_that_no_artifact_has_are_told_in_every_format() {
    let lab = lab();
    lab.run(&["lock"]);
    lab.write("home/plain/mine/<own>.bin", [5; 700]);
    lab.write("home/plain/half.safetensors.part", [5; 30]);
    let told = |format: &str| lab.run(&["report", "--format", format]).out;
    let (foreign, leftover) =
        ("1 file that no artifact has: 700 B", "1 file left by stopped downloads of other programs: 30 B");
    for (format, place) in
        [("text", "mine/<own>.bin"), ("markdown", "mine/&lt;own&gt;.bin"), ("html", "mine/&lt;own&gt;.bin")]
    {
        let said = told(format);
        assert!([foreign, leftover, place, "half.safetensors.part"].iter().all(|text| said.contains(text)), "{said}");
    }
    let json: Value = serde_json::from_str(&told("json")).unwrap();
    assert_eq!(json["strays"].as_array().unwrap().len(), 2, "{json}");
    let metrics = told("prometheus");
    for line in [
        "larder_stray_files{kind=\"foreign\"} 1",
        "larder_stray_bytes{kind=\"foreign\"} 700",
        "larder_stray_bytes{kind=\"leftover\"} 30",
    ] {
        assert!(metrics.lines().any(|own| own == line), "{line}: {metrics}");
    }
}

#[test]
fn faults_come_first_and_what_was_seen_good_is_told() {
    let lab = rotten_lab();
    let said = lab.run(&["report"]);
    assert_eq!(said.code, 3, "{said:?}");
    let at = |text: &str| said.out.find(text).unwrap_or_else(|| panic!("{text:?} is not in\n{}", said.out));
    assert!(at("2 of 4 artifacts are not in order.") < at("fault: absent/<script>.bin: it is missing"));
    assert!(
        at("fault: small/sub/small.bin: somebody replaced it: it was right before, and was written since")
            < at("artifact ")
    );
    assert!(
        at("  absent ") < at("  small ") && at("  small ") < at("  big "),
        "the largest of those in order is first"
    );
    let row = |name: &str| said.out.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
    assert!(row("big ").contains("in order") && row("big ").ends_with("just now"), "{}", said.out);
    assert!(row("absent ").ends_with("never"), "{}", said.out);
    assert!(row("small ").ends_with("just now"), "it was good before it rotted: {}", said.out);
}

#[test]
fn json_has_every_artifact_and_every_run() {
    let lab = rotten_lab();
    for arguments in [&["report", "--json"][..], &["report", "--format", "json"]] {
        let said = lab.run(arguments);
        let report: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!((&report["version"], &report["command"]), (&Value::from(1), &Value::from("report")));
        assert_eq!(report["totals"]["artifacts"], 4);
        assert_eq!(report["totals"]["here_bytes"], 359_000);
        assert_eq!(report["totals"]["wanted_bytes"], 479_000);
        assert_eq!(report["artifacts"].as_array().unwrap().len(), 4);
        assert_eq!(report["artifacts"][0]["artifact"], "absent");
        let runs = report["runs"].as_array().unwrap();
        assert_eq!((runs.len(), &runs[0]["faults"], &runs[1]["faults"]), (2, &Value::from(2), &Value::from(1)));
        assert_eq!(runs[1]["bytes_read"], 359_000);
    }
    let refused = lab.run(&["report", "--json", "--format", "html"]);
    assert!(refused.code == 2 && refused.err.contains("--out FILE"), "{refused:?}");
}

/// One long file that the lock knows, and one that no record has a digest of; both were read.
fn lab_with_long_file() -> (Lab, Vec<u8>) {
    let content: Vec<u8> = (0..9_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let manifest = format!(
        "[[artifact]]\nname = \"long\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{{ path = \"long.bin\", size = {}, sha256 = \"{}\" }}]\n\
         [[artifact]]\nname = \"own\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{{ path = \"own.bin\" }}]\n",
        content.len(),
        Sha256::of(&content)
    );
    let lab = Lab::new(INVENTORY, &manifest);
    lab.write("home/plain/long.bin", &content);
    lab.write("home/plain/own.bin", b"trained here");
    assert_eq!(lab.run(&["verify"]).code, 0);
    (lab, content)
}

#[test]
fn a_fault_has_its_kind_its_place_and_its_history_in_every_format() {
    let (lab, content) = lab_with_long_file();
    let place = lab.path("home/plain/long.bin");
    let file = fs_err::OpenOptions::new().write(true).open(&place).unwrap();
    let before = fs_err::metadata(&place).unwrap().modified().unwrap();
    file.file().write_all_at(b"XXXX", 5 << 20).unwrap();
    file.file().set_modified(before).unwrap();
    assert_eq!(lab.run(&["verify"]).code, 3);
    for format in ["text", "markdown", "html"] {
        let said = lab.run(&["report", "--format", format]);
        for text in ["bytes 4194304-8388607, read 20", "rotted", "proven", "own/own.bin", "trusted as first seen"] {
            assert!(said.out.contains(text), "{format}: {text:?} is not in\n{}", said.out);
        }
    }
    let metrics = lab.run(&["report", "--format", "prometheus"]).out;
    for line in [
        "larder_faults{artifact=\"long\",store=\"plain\",kind=\"rotted\"} 1",
        "larder_fault_bytes{artifact=\"long\",store=\"plain\",path=\"long.bin\",kind=\"rotted\"} 4194304",
        "larder_artifact_first_use_files{artifact=\"own\",store=\"plain\"} 1",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line} is not in\n{metrics}");
    }
    let report: Value = serde_json::from_str(&lab.run(&["report", "--json"]).out).unwrap();
    assert_eq!(report["trusted"][0]["path"], "own.bin");
    let events = |report: &Value| -> Vec<String> {
        let episodes = report["histories"][0]["episodes"].as_array().unwrap().clone();
        episodes.iter().map(|episode| episode["event"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(events(&report), ["rotted", "proven"]);
    // Written since, and not read again: nobody knows that it is over.
    file.file().set_modified(before + std::time::Duration::from_secs(9)).unwrap();
    let said = lab.run(&["report"]);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.out.contains("nobody has read all of it since"), "{}", said.out);
    lab.write("home/plain/long.bin", &content);
    assert_eq!(lab.run(&["verify"]).code, 0);
    let said = lab.run(&["report", "--json"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(events(&serde_json::from_str(&said.out).unwrap()), ["proven", "rotted", "proven"]);
}

#[test]
fn a_report_is_written_whole_or_not_at_all() {
    let lab = lab();
    let said = lab.run(&["report", "--format", "markdown", "--out", "r.md", "--json"]);
    let text = fs_err::read_to_string(lab.path("r.md")).unwrap();
    assert!(text.contains("| odd:name+1 |") && text.contains("\\_") == text.contains('_'), "{text}");
    assert!(text.contains("- **absent/&lt;script&gt;.bin**: missing: it is missing"), "{text}");
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap()["command"], "report");
    let nowhere = lab.run(&["report", "--out", "no/such/r.md"]);
    assert!(nowhere.code == 2 && nowhere.err.contains("There is no folder no/such"), "{nowhere:?}");
    let names: Vec<_> = fs_err::read_dir(lab.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{names:?}");
}

#[test]
fn prometheus_likes_its_metrics() {
    let Some(promtool) = tool("promtool") else { return };
    let lab = rotten_lab();
    assert_eq!(lab.run(&["report", "--format", "prometheus", "--out", "larder.prom"]).code, 3);
    let text = fs_err::read_to_string(lab.path("larder.prom")).unwrap();
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}\n{text}", String::from_utf8_lossy(&said));
    // promtool does not notice a series that comes twice.
    let mut series: Vec<&str> =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap().0).collect();
    let all = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), all, "{text}");
    assert!(
        text.contains("larder_artifact_bytes{artifact=\"odd:name+1\",store=\"we\\\"ird\\\\<b>\"} 50000\n"),
        "{text}"
    );
    assert!(text.contains("larder_faults{artifact=\"small\",store=\"plain\",kind=\"replaced\"} 1\n"), "{text}");
    assert!(text.contains("larder_verify_faults{depth=\"full\"} 2\n"), "{text}");
    assert!(!text.contains("larder_artifact_proven_timestamp_seconds{artifact=\"absent\""), "{text}");
}

#[test]
fn node_exporter_hands_the_metrics_on() {
    let Some(exporter) = tool("prometheus-node-exporter") else { return };
    let lab = rotten_lab();
    lab.run(&["report", "--format", "prometheus", "--out", "larder.prom"]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = Command::new(exporter)
        .args(["--collector.disable-defaults", "--collector.textfile"])
        .arg(format!("--collector.textfile.directory={}", lab.path("").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let page = fetch_when_up(&format!("http://127.0.0.1:{port}/metrics"));
    let _ = child.kill();
    let _ = child.wait();
    assert!(page.contains("node_textfile_scrape_error 0\n"), "{page}");
    assert!(page.contains("larder_artifact_in_order{artifact=\"big\",store=\"plain\"} 1\n"), "{page}");
}

/// Asks until somebody answers.
fn fetch_when_up(url: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        loop {
            if let Ok(answer) = client.get(url).send().await {
                return answer.text().await.unwrap();
            }
            tokio::task::yield_now().await;
        }
    })
}

#[test]
fn the_page_is_whole_by_itself_and_a_browser_shows_it() {
    let lab = rotten_lab();
    assert_eq!(lab.run(&["report", "--format", "html", "--out", "report.html"]).code, 3);
    let page = fs_err::read_to_string(lab.path("report.html")).unwrap();
    for foreign in ["<script", "<link", "@import", "src=", "url(", "<i>"] {
        assert!(!page.contains(foreign), "{foreign} is in the page");
    }
    let Some(chromium) = tool("chromium") else { return };
    let dom = browse(&chromium, &lab.path("report.html"), &["--dump-dom"]);
    for text in [
        "<title>larder: pc &lt;1&gt; &amp; \"co\", 20",
        "2 of 4 artifacts are not in order.",
        "<a href=\"#artifact-absent\">absent</a><span class=\"path\">/&lt;script&gt;.bin</span>",
        "<th scope=\"row\">big <span class=\"only\">irreplaceable</span></th>",
        "<tr class=\"bad\" id=\"artifact-small\">",
        "<tr class=\"good\" id=\"artifact-odd.3aname.2b1\">",
        "<title>big: 293.0 KiB, in order</title>",
        "<th scope=\"col\" class=\"number\">Faults</th>",
    ] {
        assert!(dom.contains(text), "{text:?} is not in\n{dom}");
    }
    assert_eq!(dom.matches("<rect ").count(), 8, "four artifacts, on wide and on narrow screens");
    let links: Vec<&str> = dom.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(!links.is_empty());
    for link in links {
        assert!(dom.contains(&format!("id=\"{}\"", link.strip_prefix('#').unwrap())), "{link} leads nowhere");
    }
}

#[test]
fn phones_and_dark_rooms_get_a_page_that_fits() {
    let Some(chromium) = tool("chromium") else { return };
    let lab = rotten_lab();
    lab.run(&["report", "--format", "html", "--out", "report.html"]);
    let pictures: Vec<Vec<u8>> = [("900,1400", "light"), ("390,2600", "phone"), ("900,2300", "dark")]
        .map(|(size, name)| {
            let file = lab.path(&format!("{name}.png"));
            let dark = if name == "dark" { "--force-dark-mode" } else { "--hide-scrollbars" };
            let blink = if name == "dark" { "--blink-settings=preferredColorScheme=0" } else { "--no-first-run" };
            let shot = format!("--screenshot={}", file.display());
            browse(&chromium, &lab.path("report.html"), &[&shot, &format!("--window-size={size}"), dark, blink]);
            keep(name, &file);
            fs_err::read(file).unwrap()
        })
        .into();
    assert!(pictures.iter().all(|picture| picture.starts_with(b"\x89PNG") && picture.len() > 10_000));
    assert!(pictures[0] != pictures[2], "dark is light");
}

#[test]
fn on_a_phone_nothing_is_wider_than_the_screen() {
    let Some(chromium) = tool("chromium") else { return };
    let lab = rotten_lab();
    lab.run(&["report", "--format", "html", "--out", "report.html"]);
    let page = fs_err::read_to_string(lab.path("report.html")).unwrap();
    let inner = page.replace('&', "&amp;").replace('"', "&quot;");
    for width in [320, 390, 900] {
        let measure = "const root = frames[0].document.documentElement; \
            document.title = `${frames[0].innerWidth} ${root.scrollWidth} ${root.scrollHeight}`";
        let outer = format!(
            "<!DOCTYPE html><title>none</title><iframe srcdoc=\"{inner}\" style=\"width:{width}px;height:2600px;border:0\" \
             onload=\"{measure}\"></iframe>"
        );
        lab.write("outer.html", outer);
        let dom = browse(&chromium, &lab.path("outer.html"), &["--dump-dom", "--window-size=1200,2700"]);
        let title = dom.split("<title>").nth(1).unwrap().split("</title>").next().unwrap();
        let sizes: Vec<u32> = title.split(' ').map(|size| size.parse().unwrap_or_else(|_| panic!("{title}"))).collect();
        assert_eq!(sizes[0], width, "it was laid out for this screen");
        assert!(sizes[1] <= width && sizes[2] > 500, "{width} are too few: {title}");
    }
}

/// Puts a picture where somebody can look at it.
fn keep(name: &str, file: &Path) {
    let bytes = fs_err::read(file).unwrap();
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{name}.png"));
    larder::fsio::write_atomic(&place, &bytes, &larder::fsio::WriteOptions::default()).unwrap();
}

/// What the browser printed about a page, with nothing of the user's and nobody to ask.
fn browse(chromium: &Path, page: &Path, arguments: &[&str]) -> String {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
