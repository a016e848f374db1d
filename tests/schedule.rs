//! `larder schedule`: units that systemd itself finds right, safe and runnable.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use larder::digest::Sha256;
use larder::fsio::running_as;
use serde_json::Value;

#[expect(dead_code, reason = "this lab has an inventory of its own")]
#[path = "support/program.rs"]
mod program;
#[path = "support/tool.rs"]
mod tool;

use program::Lab;
use tool::tool;

const GOOD: &[u8] = b"the right content";

/// A lab with one file, in whose names systemd's own signs occur.
fn lab(notify: &str) -> Lab {
    let inventory = format!(
        "machine = 'pc \"1\" 50%'\n\n[stores]\nplain = {{ layout = \"folder\", path = \"~/plain\" }}\n\n[machines.'pc \"1\" 50%']\n{notify}"
    );
    let manifest = format!(
        "[[artifact]]\nname = \"own\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{{ path = \"own.bin\", sha256 = \"{}\" }}]\n",
        Sha256::of(GOOD)
    );
    let lab = Lab::new(&inventory, &manifest);
    lab.write("home/plain/own.bin", GOOD);
    lab.write("metrics/.keep", b"");
    lab
}

const ALL: [&str; 10] = [
    "schedule",
    "--unless-busy",
    "test -e \"$HOME/a b\" && echo 100%",
    "--postpone",
    "2h",
    "--prometheus",
    "metrics/larder.prom",
    "--html",
    "metrics/larder page.html",
    "--folder",
];

const UNITS: [&str; 4] =
    ["larder-verify.service", "larder-verify.timer", "larder-verify-full.service", "larder-verify-full.timer"];

fn analyze(systemd_analyze: &Path, arguments: &[&str], lab: &Lab) -> Output {
    let home = lab.path("home");
    let mut command = Command::new(systemd_analyze);
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &home);
    command.env("XDG_RUNTIME_DIR", &home).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let Some(systemd_analyze) = tool("systemd-analyze") else { return };
    for (scope, manager) in [("user", "--user"), ("system", "--system")] {
        let lab = lab("");
        let written = lab.run(&[&ALL[..], &["units", "--scope", scope, "--full-every", "90d"]].concat());
        assert_eq!(written.code, 0, "{written:?}");
        for name in UNITS {
            let unit = lab.path("units").join(name);
            assert_eq!(fs_err::metadata(&unit).unwrap().permissions().mode() & 0o777, 0o644);
            let output = analyze(&systemd_analyze, &["verify", manager, "--man=no", unit.to_str().unwrap()], &lab);
            // An unknown key is only a warning, with success.
            let text = fs_err::read_to_string(&unit).unwrap();
            let ours: Vec<String> =
                said(&output).lines().filter(|line| line.contains("larder")).map(str::to_owned).collect();
            assert!(output.status.success() && ours.is_empty(), "{ours:?}\n{text}");
        }
    }
}

#[test]
fn the_systems_unit_exposes_little() {
    let Some(systemd_analyze) = tool("systemd-analyze") else { return };
    for (user, most) in [("root", "25"), ("daemon", "18")] {
        let lab = lab("");
        let arguments = ["--folder", "units", "--scope", "system", "--full-every", "30d", "--as", user];
        assert_eq!(lab.run(&[&ALL[..7], &arguments].concat()).code, 0);
        for unit in ["units/larder-verify.service", "units/larder-verify-full.service"] {
            let (unit, threshold) = (lab.path(unit), format!("--threshold={most}"));
            let arguments = ["security", "--offline=true", "--no-pager", &threshold, unit.to_str().unwrap()];
            let output = analyze(&systemd_analyze, &arguments, &lab);
            assert!(output.status.success(), "more than {most} for {user}:\n{}", said(&output));
        }
    }
}

#[test]
fn the_users_unit_exposes_no_more_than_the_users_own_systemd_can_keep() {
    let Some(systemd_analyze) = tool("systemd-analyze") else { return };
    let lab = lab("");
    assert_eq!(lab.run(&[&ALL[..7], &["--folder", "units", "--scope", "user"]].concat()).code, 0);
    let unit = lab.path("units/larder-verify.service");
    // What walls the system's unit in needs rights that a user's systemd has not.
    let arguments = ["security", "--user", "--offline=true", "--no-pager", "--threshold=67", unit.to_str().unwrap()];
    let output = analyze(&systemd_analyze, &arguments, &lab);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn what_is_only_shown_changes_nothing() {
    let lab = lab("");
    let shown = lab.run(&["schedule", "--at", "4:05"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(
        shown.out.contains("OnCalendar=*-*-* 04:05:00") && shown.out.contains("SuccessExitStatus=130"),
        "{}",
        shown.out
    );
    assert!(shown.out.contains("# LAB/home/.config/systemd/user/larder-verify.timer"), "{}", shown.out);
    assert!(shown.out.contains("\"pc \\\"1\\\" 50%%\" verify --max-age 7d\n"), "{}", shown.out);
    assert!(shown.out.contains("TimeoutStartSec=infinity\n"), "{}", shown.out);
    for (arguments, night) in [
        (&["--full"][..], "verify --full\n"),
        (&["--full", "--max-age", "30d"], "verify --full --max-age 30d\n"),
        (&["--quick"], "verify --quick\n"),
        (
            &["--budget", "2h", "--max-age", "14d", "--max-rate", "200MB/s"],
            "verify --max-age 14d --budget 2h --max-rate 200MB/s\n",
        ),
    ] {
        let said = lab.run(&[&["schedule"], arguments].concat());
        assert!(said.code == 0 && said.out.contains(night), "{night}: {said:?}");
    }
    let dry = lab.run(&["schedule", "--install", "--dry-run"]);
    assert!(dry.out.contains("$ systemctl --user enable --now larder-verify.timer"), "{}", dry.out);
    let json: Value = serde_json::from_str(&lab.run(&["schedule", "--install", "--dry-run", "--json"]).out).unwrap();
    assert_eq!((&json["written"], json["units"].as_array().unwrap().len()), (&Value::Bool(false), 2));
    assert_eq!(json["commands"][0], "systemctl --user daemon-reload");
    assert!(!lab.path("home/.config").exists());
}

#[test]
fn every_digest_is_compared_by_units_of_their_own() {
    let lab = lab("");
    let with = |more: &[&str]| lab.run(&[&["schedule", "--full-every"], more].concat());
    let shown = with(&["90d", "--at", "4:05", "--budget", "2h", "--max-rate", "200MB/s", "--unless-busy", "exit 1"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    let (night, full) = shown.out.split_once("larder-verify-full.service\n").unwrap();
    assert!(
        night.contains("verify --max-age 7d --budget 2h --max-rate 200MB/s") && !night.contains("--full"),
        "{night}"
    );
    assert!(full.contains("verify --full --max-rate 200MB/s --unless-busy \"exit 1\"\n"), "no budget ends it: {full}");
    assert!(
        full.contains("\nAfter=larder-verify.service\n") && full.contains("OnCalendar=*-01/3-01 04:05:00"),
        "{full}"
    );
    if let Some(systemd_analyze) = tool("systemd-analyze") {
        for (interval, times) in [("7d", 52), ("30d", 12), ("60d", 6), ("90d", 4), ("180d", 2), ("365d", 1)] {
            let shown = with(&[interval]).out;
            let full = shown.split_once("larder-verify-full.timer\n").unwrap().1;
            let calendar = full.lines().find_map(|line| line.strip_prefix("OnCalendar=")).unwrap();
            let arguments = ["calendar", "--base-time=2026-01-01 05:00", "--iterations=60", calendar];
            let told = said(&analyze(&systemd_analyze, &arguments, &lab));
            let within = told.lines().filter(|line| line.contains("2026-") && line.contains(" 02:30:00 ")).count();
            // The first of January is over at that hour.
            assert!((times - 1..=times).contains(&within), "{interval}: {calendar}: {told}");
        }
    }
    let dry = with(&["30d", "--install", "--dry-run"]).out;
    let start = "$ systemctl --user enable --now larder-verify.timer larder-verify-full.timer";
    assert!(dry.contains(start), "{dry}");
    assert_eq!(with(&["30d", "--folder", "units"]).code, 0);
    UNITS.iter().for_each(|unit| assert!(lab.path("units").join(unit).exists(), "{unit}"));
    let without = lab.run(&["schedule", "--folder", "units"]);
    assert!(without.err.contains("systemctl --user disable --now larder-verify-full.timer"), "{without:?}");
    assert!(lab.path("units/larder-verify-full.timer").exists());
}

#[test]
fn mistakes_are_told_and_foreign_units_are_kept() {
    let lab = lab("");
    for (arguments, why) in [
        (&["--at", "25:00"][..], "write hours and minutes"),
        (&["--calendar", "never\nExecStart=/bin/sh"], "is not a calendar of systemd"),
        (&["--as", "root"], "--as is for --scope system"),
        (&["--scope", "system", "--as", "nobody-at-all"], "There is no user"),
        (&["--budget", "12"], "2h or 200GB"),
        (&["--quick", "--budget", "2h"], "cannot be used with"),
        (&["--full", "--full-every", "90d"], "cannot be used with"),
        (&["--full-every", "soon"], "write 7d, 30d, 60d, 90d, 180d or 365d"),
        (&["--unless-busy", "x", "--postpone", "soon"], "--postpone \"soon\" is no time"),
    ] {
        let said = lab.run(&[&["schedule"], arguments].concat());
        assert!(said.code == 2 && said.err.contains(why), "{arguments:?}: {said:?}");
    }
    lab.write("units/larder-verify.service", "[Service]\nExecStart=/bin/mine\n");
    let refused = lab.run(&["schedule", "--folder", "units"]);
    assert!(refused.code == 2 && refused.err.contains("was not written by larder"), "{refused:?}");
    assert!(!lab.path("units/larder-verify.timer").exists());
    let ours = lab.run(&["schedule", "--folder", "others"]);
    assert_eq!((ours.code, lab.run(&["schedule", "--quick", "--folder", "others"]).code), (0, 0), "{ours:?}");
    assert!(fs_err::read_to_string(lab.path("others/larder-verify.service")).unwrap().contains("verify --quick"));
}

#[test]
fn whom_the_unit_may_reach_follows_from_what_it_does() {
    let text = |lab: &Lab, more: &[&str]| lab.run(&[&["schedule", "--scope", "system"], more].concat()).out;
    assert!(text(&lab(""), &[]).contains("IPAddressDeny=any\nIPAddressAllow=localhost\n"));
    assert!(text(&lab(""), &["--unless-busy", "http://127.0.0.1:17803/api/health"]).contains("IPAddressDeny=any"));
    assert!(!text(&lab(""), &["--unless-busy", "http://pc2:17803/api/health"]).contains("IPAddressDeny"));
    assert!(!text(&lab("[notify]\ncommand = [\"/usr/bin/curl\"]\n"), &[]).contains("IPAddressDeny"));
}

/// Starts the user's systemd in namespaces of its own, runs the service, and says how it ended.
const NIGHT: &str = r#"
mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/system /run/user/0; chmod 700 /run/user/0
umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
export XDG_RUNTIME_DIR=/run/user/0 SYSTEMD_UNIT_PATH="$UNITS:/usr/lib/systemd/user"
/lib/systemd/systemd --user --unit=basic.target >/dev/null 2>&1 &
until systemctl --user is-active --quiet basic.target; do :; done
systemctl --user start larder-verify.service
echo "result $(systemctl --user show -p Result --value larder-verify.service) $(systemctl --user show -p ExecMainStatus --value larder-verify.service)"
echo "failed $(systemctl --user --failed --plain --no-legend)"
systemctl --user start larder-verify.timer && echo "timer $(systemctl --user is-active larder-verify.timer)"
"#;

#[test]
fn a_night_under_a_real_systemd_ends_as_it_should() {
    let (Some(unshare), Some(_)) = (tool("unshare"), tool("systemctl")) else { return };
    let lab = lab("");
    let arguments = ["schedule", "--prometheus", "metrics/larder.prom", "--unless-busy", "exit 1", "--folder", "units"];
    assert_eq!(lab.run(&arguments).code, 0);
    let night = || {
        let mut command = Command::new(&unshare);
        command.args(["--mount", "--cgroup", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", NIGHT]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", lab.path("home"));
        said(&command.env("UNITS", lab.path("units")).output().unwrap())
    };
    if running_as().uid != 0 {
        return tool::skip::skipped("only root can give systemd a machine of its own");
    }
    let good = night();
    assert!(good.contains("result success 0\nfailed \ntimer active"), "{good}");
    assert!(lab.path("metrics/larder.prom").exists(), "the report is written: {good}");
    lab.write("home/plain/own.bin", b"the wrong content");
    let bad = night();
    assert!(bad.contains("result exit-code 3\nfailed larder-verify.service"), "{bad}");
    let metrics = fs_err::read_to_string(lab.path("metrics/larder.prom")).unwrap();
    assert!(metrics.contains("larder_verify_faults{depth=\"full\"} 1"), "also after a failure: {metrics}");
}

/// Installs the units by larder itself, with the real `systemctl` of a user's systemd in namespaces of its own.
const INSTALL: &str = r#"
mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/system /run/user/0; chmod 700 /run/user/0
umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
export XDG_RUNTIME_DIR=/run/user/0
/lib/systemd/systemd --user --unit=basic.target >/dev/null 2>&1 &
until systemctl --user is-active --quiet basic.target; do :; done
"$LARDER" schedule --install; echo "installed $?"
echo "enabled $(systemctl --user is-enabled larder-verify.timer)"
echo "active $(systemctl --user is-active larder-verify.timer)"
echo "next $(systemctl --user show -p NextElapseUSecRealtime --value larder-verify.timer)"
"$LARDER" schedule --install --at 04:10; echo "again $?"
echo "then $(systemctl --user show -p NextElapseUSecRealtime --value larder-verify.timer)"
"#;

#[test]
fn install_calls_the_real_systemctl_and_the_timer_waits_for_the_night() {
    let (Some(unshare), Some(_)) = (tool("unshare"), tool("systemctl")) else { return };
    if running_as().uid != 0 {
        return tool::skip::skipped("only root can give systemd a machine of its own");
    }
    let lab = lab("");
    let mut command = Command::new(&unshare);
    command.args(["--mount", "--cgroup", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", INSTALL]);
    command.current_dir(lab.path("")).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", lab.path("home")).env("LARDER_STATE", lab.path("state"));
    let said = said(&command.env("LARDER", env!("CARGO_BIN_EXE_larder")).output().unwrap());
    for line in ["installed 0", "enabled enabled", "active active", "again 0"] {
        assert!(said.lines().any(|said| said == line), "{line:?} is missing:\n{said}");
    }
    assert!(said.contains(" 02:30:") || said.contains(" 02:"), "{said}");
    assert!(said.lines().any(|line| line.starts_with("then ") && line.contains(" 04:")), "{said}");
    assert!(lab.path("home/.config/systemd/user/timers.target.wants/larder-verify.timer").exists());
}
