//! `larder doctor` on made-up machines: everything right, and one thing wrong at a time.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests set up the machines that are looked at")]

use std::os::unix::fs::{PermissionsExt, symlink};

use larder::fsio::running_as;
use serde_json::Value;

#[expect(dead_code, reason = "this lab has an inventory of its own")]
#[path = "support/program.rs"]
mod program;
#[path = "support/skip.rs"]
mod skip;

use program::Lab;

const SMI: &str = "#!/bin/sh\necho 'NVIDIA RTX PRO 6000 Blackwell Workstation Edition, 97887, 12.0'\n";
const UNIT: &str = "[Service]\nUser=lab\nWorkingDirectory=/srv/platform/gpu_service\nExecStart=/srv/platform/venv/bin/python server.py\n";

const MANIFEST: &str = r#"
[[artifact]]
name = "sd"
store = "huggingface"
source = "hf:lab/sd@0123456789012345678901234567890123456789"
file = [{ path = "model.safetensors", size = 25000000000, sha256 = "7d330da4816157540d6bb7838bf63a0f02f573fc48ca4d8de34bb0cbfd514f09" }]

[[artifact]]
name = "sound"
store = "gpu"
smoke = "mmaudio"
source = "local"
file = [{ path = "weights/sound.pth", size = 5 }]
"#;

/// A machine on which everything is as it should be; its files lie below `root`.
fn machine() -> Lab {
    let lab = Lab::new("", MANIFEST);
    let root = lab.path("root").display().to_string();
    lab.write(
        "inventory.toml",
        format!(
            "machine = \"pc1\"\n[machines.pc1]\n[stores]\n\
             huggingface = {{ layout = \"hf-cache\", path = \"{root}/home/lab/.cache/huggingface/hub\" }}\n\
             gpu = {{ layout = \"folder\", path = \"{root}/srv/platform/gpu_service\" }}\n\
             ollama = {{ layout = \"ollama\", path = \"{root}/usr/share/ollama/.ollama/models\" }}\n\
             [python]\nenvironments = [\"{root}/srv/platform/venv\"]\n"
        ),
    );
    let own = running_as();
    lab.write("root/etc/passwd", format!("root:x:0:0::/root:/bin/sh\nlab:x:{}:{}::/home/lab:/bin/sh\nollama:x:998:998::/usr/share/ollama:/bin/false\n", own.uid, own.gid));
    lab.write("root/etc/systemd/system/ai4artsed-gpu.service", UNIT);
    lab.write(
        "root/usr/lib/systemd/system/ollama.service",
        "[Service]\nUser=ollama\nExecStart=/usr/bin/ollama serve\n",
    );
    lab.write("root/usr/lib/systemd/system/cron.service", "[Service]\nExecStart=/usr/sbin/cron\n");
    lab.write("root/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n");
    lab.write("root/sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n");
    driver(&lab, "580.95.05");
    lab.write("root/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05", "");
    script(&lab, "root/usr/bin/nvidia-smi", SMI);
    lab.write("root/proc/meminfo", "MemTotal:       131072000 kB\nMemFree: 1 kB\n");
    for (name, version) in [
        ("torch", "2.11.0.dev20260203+cu130"),
        ("torchaudio", "2.11.0.dev20260203+cu130"),
        ("torchvision", "0.25.0.dev20260203+cu130"),
        ("transformers", "4.57.6"),
    ] {
        install(&lab, name, version);
    }
    lab.write("root/srv/platform/gpu_service/weights/sound.pth", "12345");
    lab.write("root/home/lab/.cache/huggingface/hub/CACHEDIR.TAG", "");
    lab
}

fn driver(lab: &Lab, version: &str) {
    let text =
        format!("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\nGCC version: 12\n");
    lab.write("root/proc/driver/nvidia/version", text);
}

fn script(lab: &Lab, path: &str, text: &str) {
    lab.write(path, text);
    std::fs::set_permissions(lab.path(path), std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn install(lab: &Lab, name: &str, version: &str) {
    let packages = lab.path("root/srv/platform/venv/lib/python3.13/site-packages");
    if let Ok(entries) = std::fs::read_dir(&packages) {
        let of_it =
            |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{name}-"));
        let old: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| of_it(path)).collect();
        old.iter().for_each(|path| std::fs::remove_dir_all(path).unwrap());
    }
    lab.write(
        &format!("root/srv/platform/venv/lib/python3.13/site-packages/{name}-{version}.dist-info/METADATA"),
        format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"),
    );
}

/// Everything that was found: state, subject, all the words.
fn findings(lab: &Lab) -> Vec<(String, String, String)> {
    let root = lab.path("root").display().to_string();
    let said = lab.run(&["doctor", "--json", "--root", &root]);
    let diagnosis: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let areas = diagnosis["areas"].as_array().unwrap();
    let all = areas.iter().flat_map(|area| area["findings"].as_array().unwrap());
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let found: Vec<_> = all
        .map(|one| {
            let words = ["what", "why", "fix"].map(|key| word(one, key)).join(" | ");
            (word(one, "state"), word(one, "subject"), words)
        })
        .collect();
    let is_wrong = found.iter().any(|(state, ..)| state == "fault");
    assert_eq!(said.code, if is_wrong { 3 } else { 0 }, "{said:?}");
    found
}

/// Fails unless exactly one thing is wrong, and it is this one, told with these words.
#[track_caller]
fn only_fault(lab: &Lab, subject: &str, words: &[&str]) {
    let found = findings(lab);
    let faults: Vec<_> = found.iter().filter(|(state, ..)| state == "fault").collect();
    assert_eq!(faults.len(), 1, "{faults:#?}");
    assert!(faults[0].1.contains(subject), "{subject:?} is not in {faults:#?}");
    for word in words {
        assert!(faults[0].2.contains(word), "{word:?} is not in {faults:#?}");
    }
    assert!(!faults[0].2.ends_with("| "), "nobody knows what to do: {faults:#?}");
}

#[test]
fn a_machine_in_order_is_told_to_be() {
    let lab = machine();
    let found = findings(&lab);
    assert!(found.iter().all(|(state, ..)| state == "ok"), "{found:#?}");
    for (subject, what) in [
        ("gpu NVIDIA RTX PRO 6000", "95.6 GiB of memory, compute capability 12.0"),
        ("CUDA level", "driver 580.95.05 runs CUDA 13"),
        ("torch family", "of one build"),
        ("Hugging Face's cache of", "the store `huggingface`"),
        ("WorkingDirectory of", "the store `gpu`"),
        ("Ollama's models of", "the store `ollama`"),
        ("rights of lab in store gpu", "everything may be read"),
        ("links in store huggingface", "none of them leads to nothing"),
    ] {
        let is_told = |(_, found, words): &(String, String, String)| found.contains(subject) && words.contains(what);
        assert!(found.iter().any(is_told), "{subject}: {what} is not in {found:#?}");
    }
    let said = lab.run(&["doctor", "--root", lab.path("root").to_str().unwrap()]);
    assert!(
        said.out.contains("python: 3 of 3 hold\n")
            && said.out.ends_with("Nothing is wrong, as far as it could be looked at\n"),
        "{}",
        said.out
    );
    assert!(!said.out.contains("torch family"), "what holds is listed with --all only");
}

#[test]
fn drivers_that_are_missing_old_or_half_updated() {
    let lab = machine();
    driver(&lab, "570.133.07");
    let found = findings(&lab);
    let faults: Vec<&str> = found.iter().filter(|one| one.0 == "fault").map(|one| one.1.as_str()).collect();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("driver library ") && faults[1] == "CUDA level", "{faults:?}");

    let lab = machine();
    lab.write("root/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05", "");
    driver(&lab, "581.1");
    only_fault(&lab, "driver library", &["it is 580.95.05, the loaded driver is 581.1", "version mismatch", "reboot"]);

    let lab = machine();
    std::fs::remove_dir_all(lab.path("root/proc/driver")).unwrap();
    script(
        &lab,
        "root/usr/bin/nvidia-smi",
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'\nexit 9\n",
    );
    let found = findings(&lab);
    let here = |lab: &Lab| {
        let (root, home) = (lab.path("root"), lab.path("home"));
        larder::doctor::Machine { root: &root, home: &home }.free_gpu_memory()
    };
    assert_eq!(here(&lab), None);
    script(
        &lab,
        "root/usr/bin/nvidia-smi",
        "#!/bin/sh\n[ \"$1\" = --query-gpu=memory.free ] && echo 91234 && echo 17\n",
    );
    assert_eq!(here(&lab), Some(91234 << 20), "of the first");
    let told = |words: &str| found.iter().any(|one| one.0 == "fault" && one.2.contains(words));
    assert!(told("a GPU is on the bus, and no NVIDIA driver is loaded") && told("could not communicate"), "{found:#?}");

    let lab = machine();
    for gone in ["root/proc/driver", "root/sys"] {
        std::fs::remove_dir_all(lab.path(gone)).unwrap();
    }
    std::fs::remove_file(lab.path("root/usr/bin/nvidia-smi")).unwrap();
    let found = findings(&lab);
    assert!(found.iter().any(|one| one.0 == "unknown" && one.2.contains("there is no NVIDIA GPU here")), "{found:#?}");
}

#[test]
fn weights_that_do_not_fit() {
    let lab = machine();
    script(&lab, "root/usr/bin/nvidia-smi", "#!/bin/sh\necho 'NVIDIA GeForce RTX 5080, 16303, 12.0'\n");
    let found = findings(&lab);
    assert!(
        found.iter().any(|one| one.0 == "unknown"
            && one.1 == "memory for sd"
            && one.2.contains("23.3 GiB, more than the GPU has")),
        "{found:#?}"
    );
    lab.write("root/proc/meminfo", "MemTotal: 4000000 kB\n");
    only_fault(&lab, "memory for sd", &["more than GPU and machine together have", "profile"]);
    // Where nobody says what a GPU has, the machine's memory is what is known.
    std::fs::remove_file(lab.path("root/usr/bin/nvidia-smi")).unwrap();
    let found = findings(&lab);
    let told = found.iter().find(|one| one.1 == "memory for sd").unwrap_or_else(|| panic!("{found:#?}"));
    assert!(told.0 == "unknown" && told.2.contains("23.3 GiB, more than the machine has (3.8 GiB)"), "{told:?}");
    lab.write("root/proc/meminfo", "MemTotal: 64000000 kB\n");
    assert!(findings(&lab).iter().all(|one| one.1 != "memory for sd"));
}

#[test]
fn packages_that_do_not_belong_together() {
    let lab = machine();
    install(&lab, "torchaudio", "2.11.0.dev20260204+cu130");
    only_fault(&lab, "torch family", &["of different nights", "torchaudio 2.11.0.dev20260204+cu130", "HeartMuLa"]);
    install(&lab, "torchaudio", "2.11.0.dev20260203+cu130");
    for (version, words) in
        [("2.11.0.dev20260203+cu128", "older than CUDA 13"), ("2.11.0.dev20260203+cpu", "built for the processor")]
    {
        install(&lab, "torch", version);
        only_fault(&lab, "torch's CUDA", &[words, "pip install"]);
    }
    install(&lab, "torch", "2.11.0.dev20260203+cu130");
    for (version, words) in [("4.57.0", "was withdrawn"), ("5.0.1", "is not of the 4 series")] {
        install(&lab, "transformers", version);
        only_fault(&lab, "transformers", &[words, "pip install transformers==4.57.6"]);
    }
}

#[test]
fn services_that_read_something_else() {
    let drop_in = "root/etc/systemd/system/ai4artsed-gpu.service.d/override.conf";
    for (lines, subject, words) in [
        ("Environment=HF_HOME=/data/hf", "Hugging Face's cache", &["/data/hf/hub, larder keeps", "HF_HUB_CACHE="][..]),
        ("Environment=\"HOME=/home/other\"", "Hugging Face's cache", &["/home/other/.cache/huggingface/hub"]),
        ("User=nobody-here", "nobody-here", &["no such user", "useradd"]),
        ("WorkingDirectory=/srv/platform", "WorkingDirectory of", &["larder keeps sound", "systemctl edit"]),
        ("Environment=DIFFUSERS_CACHE_DIR=/data", "DIFFUSERS_CACHE_DIR", &["split"]),
        ("Environment=LORA_DIR=%h/old/loras", "LORA_DIR", &["/home/lab/old/loras", "skipped"]),
        ("Environment=COMFYUI_PATH=/a COMFYUI_DIR=/b", "ComfyUI's folder", &["COMFYUI_PATH is /a, COMFYUI_DIR is /b"]),
        ("EnvironmentFile=-/etc/platform.env", "Hugging Face's cache", &["/mnt/cache"]),
    ] {
        let lab = machine();
        lab.write("root/etc/platform.env", "# the caches\nHF_HUB_CACHE=\"/mnt/cache\"\n");
        lab.write(drop_in, format!("[Service]\n{lines}\n"));
        only_fault(&lab, subject, words);
    }
    let lab = machine();
    lab.write(
        "root/etc/systemd/system/ollama.service",
        "[Service]\nUser=ollama\nExecStart=/usr/bin/ollama serve\nEnvironment=\"OLLAMA_MODELS=/data/models\"\n",
    );
    only_fault(&lab, "Ollama's models", &["/data/models, larder keeps `ollama` at", "OLLAMA_MODELS="]);
}

#[test]
fn trees_with_dangling_links_and_closed_files() {
    let lab = machine();
    let hub = lab.path("root/home/lab/.cache/huggingface/hub");
    symlink("nowhere", hub.join("broken")).unwrap();
    only_fault(&lab, "links in store huggingface", &["1 lead to nothing: broken", "-xtype l"]);

    if running_as().uid != 0 {
        skip::skipped("only root can make files of others");
    } else {
        let lab = machine();
        let passwd = "lab:x:4242:4242::/home/lab:/bin/sh\nollama:x:998:998::/usr/share/ollama:/bin/false\n";
        lab.write("root/etc/passwd", passwd);
        let weights = lab.path("root/srv/platform/gpu_service/weights/sound.pth");
        std::fs::set_permissions(&weights, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::set_permissions(lab.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
        only_fault(&lab, "rights of lab in store gpu", &["1 may not be read: weights/sound.pth", "chmod"]);
        std::fs::set_permissions(&weights, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&weights, Some(4243), Some(4243)).unwrap();
        only_fault(&lab, "owner in store gpu", &["1 do not belong to root: weights/sound.pth", "chown"]);
        std::os::unix::fs::chown(&weights, Some(0), Some(0)).unwrap();
        std::fs::set_permissions(lab.path(""), std::fs::Permissions::from_mode(0o700)).unwrap();
        let found = findings(&lab);
        assert!(found.iter().any(|one| one.0 == "fault" && one.2.contains("may not be entered")), "{found:#?}");
    }
}

#[test]
fn keys_are_looked_at_and_never_told() {
    let lab = machine();
    let key = lab.path("root/srv/platform/openrouter.key");
    lab.write(
        "manifests/cloud.toml",
        format!("[[cloud]]\nname = \"CHAT\"\nmodel = \"m\"\nprovider = \"p\"\nkey = {key:?}\n"),
    );
    only_fault(&lab, "key ", &["there is no such file"]);
    lab.write("root/srv/platform/openrouter.key", "sk-very-secret");
    only_fault(&lab, "key ", &["its mode is 0644", "chmod 600"]);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let said = lab.run(&["doctor", "--all", "--root", lab.path("root").to_str().unwrap()]);
    assert!(said.code == 0 && said.out.contains("there, private"), "{said:?}");
    assert!(!format!("{said:?}").contains("sk-very"), "{said:?}");
}

#[test]
fn this_machine_is_examined_without_harm() {
    let lab = machine();
    let said = lab.run(&["doctor", "--all"]);
    assert!([0, 3].contains(&said.code), "{said:?}");
    assert!(said.out.contains("memory in /proc/meminfo: "), "{}", said.out);
}
