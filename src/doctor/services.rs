//! The services that read the models, and which folders they really read.

use std::path::{Path, PathBuf};

use crate::conditions::Finding;
use crate::doctor::accounts::Account;
use crate::doctor::units::{self, Unit};
use crate::doctor::{Machine, Wanted};
use crate::inventory::Layout;

/// Words in a unit's name or command by which a service of the platform is recognised.
const WORDS: [&str; 7] = ["ai4artsed", "ollama", "comfyui", "swarmui", "gpu_service", "llama-server", "heartlib"];

/// A service that reads models, with the user it runs as.
#[derive(Debug)]
pub(super) struct Service {
    unit: Unit,
    pub(super) user: String,
    /// `None` where the machine does not know the user.
    pub(super) account: Option<Account>,
}

/// The platform's services of this machine.
pub(super) fn read(machine: Machine<'_>) -> Vec<Service> {
    let is_ours = |unit: &Unit| {
        let folder = unit.working_directory.iter();
        let said: String = std::iter::once(&unit.name).chain(&unit.starts).chain(folder).cloned().collect();
        let said = said.to_lowercase();
        !unit.name.starts_with("larder") && WORDS.iter().any(|word| said.contains(word))
    };
    let services = units::services(machine).into_iter().filter(is_ours);
    services
        .map(|unit| {
            let user = unit.user.clone().unwrap_or_else(|| "root".to_owned());
            Service { account: Account::find(machine, &user), user, unit }
        })
        .collect()
}

impl Service {
    pub(super) fn name(&self) -> String {
        format!("{} (user {})", self.unit.file.display(), self.user)
    }

    pub(super) fn is_ollama(&self) -> bool {
        self.unit.starts.iter().any(|start| start.contains("ollama"))
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.unit.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn home(&self) -> Option<PathBuf> {
        self.variable("HOME").map(PathBuf::from).or_else(|| self.account.as_ref().map(|account| account.home.clone()))
    }

    /// A path of the unit on the machine: `~` and `%h` are the user's home.
    fn place(&self, machine: Machine<'_>, path: &str) -> Option<PathBuf> {
        let home = || self.home().map(|home| home.display().to_string());
        let path = if path.contains("%h") { path.replace("%h", &home()?) } else { path.to_owned() };
        let path = match path.strip_prefix('~') {
            Some(rest) => home()? + rest,
            None => path,
        };
        Some(machine.at(&path))
    }

    /// The hub cache, by the rules of Hugging Face's programs.
    pub(super) fn hub_cache(&self, machine: Machine<'_>) -> Option<PathBuf> {
        let below = |path: &str, rest: &str| self.place(machine, path).map(|path| path.join(rest));
        if let Some(cache) = self.variable("HF_HUB_CACHE").or_else(|| self.variable("HUGGINGFACE_HUB_CACHE")) {
            return self.place(machine, cache);
        }
        if let Some(home) = self.variable("HF_HOME") {
            return below(home, "hub");
        }
        if let Some(cache) = self.variable("XDG_CACHE_HOME") {
            return below(cache, "huggingface/hub");
        }
        below(self.home()?.to_str()?, ".cache/huggingface/hub")
    }

    pub(super) fn ollama_models(&self, machine: Machine<'_>) -> Option<PathBuf> {
        match self.variable("OLLAMA_MODELS") {
            Some(models) => self.place(machine, models),
            None => Some(self.place(machine, self.home()?.to_str()?)?.join(".ollama/models")),
        }
    }

    fn heartmula(&self, machine: Machine<'_>) -> Option<PathBuf> {
        match (self.variable("HEARTMULA_MODEL_PATH"), self.variable("AI_TOOLS_BASE")) {
            (Some(path), _) => self.place(machine, path),
            (None, Some(base)) => Some(self.place(machine, base)?.join("heartlib/ckpt")),
            (None, None) => None,
        }
    }
}

/// What each service reads, compared with what larder keeps.
pub(super) fn look(machine: Machine<'_>, services: &[Service], wanted: Wanted<'_>) -> Vec<Finding> {
    if services.is_empty() {
        let what = format!("no unit in /etc/systemd/system is one of {}", WORDS.join(", "));
        let why = "which caches and folders the platform reads is then decided by whoever starts it";
        return vec![Finding::unknown("services", what, why, "")];
    }
    services.iter().flat_map(|service| examine(machine, service, wanted)).collect()
}

fn examine(machine: Machine<'_>, service: &Service, wanted: Wanted<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if service.account.is_none() {
        let why = "the service cannot start";
        let fix = format!(
            "sudo useradd --create-home {}, or correct User= with: sudo systemctl edit {}",
            service.user, service.unit.name
        );
        findings.push(Finding::fault(service.name(), "this machine has no such user", why, fix));
    }
    let compare = Compare { machine, service, wanted };
    if service.is_ollama() {
        findings.extend(compare.with_stores(
            "Ollama's models",
            service.ollama_models(machine),
            Layout::Ollama,
            "OLLAMA_MODELS",
        ));
        return findings;
    }
    findings.extend(compare.with_stores(
        "Hugging Face's cache",
        service.hub_cache(machine),
        Layout::HfCache,
        "HF_HUB_CACHE",
    ));
    findings.extend(compare.with_folder_of("heartmula", service.heartmula(machine), "HEARTMULA_MODEL_PATH"));
    findings.extend(compare.with_folder_of("mmaudio", compare.gpu_folder(), "WorkingDirectory"));
    findings.extend(compare.split_cache());
    findings.extend(compare.loras());
    findings.extend(compare.comfyui());
    findings
}

struct Compare<'a> {
    machine: Machine<'a>,
    service: &'a Service,
    wanted: Wanted<'a>,
}

impl Compare<'_> {
    fn subject(&self, what: &str) -> String {
        format!("{what} of {}", self.service.name())
    }

    fn edit(&self, line: &str) -> String {
        format!("sudo systemctl edit {}: [Service] {line}", self.service.unit.name)
    }

    /// Whether the service reads one of the stores with this layout; nothing is said where there is none.
    fn with_stores(&self, what: &str, read: Option<PathBuf>, layout: Layout, variable: &str) -> Option<Finding> {
        let stores = self.wanted.stores.iter().filter(|(_, open)| open.config.layout == layout);
        let roots: Vec<(&str, &Path)> = stores.map(|(name, open)| (name, open.store.root())).collect();
        let (_, first) = *roots.first()?;
        let read = read?;
        let why = "what larder keeps elsewhere is fetched again in the middle of a session, or missing";
        if let Some((name, _)) = roots.iter().find(|(_, root)| same_place(&read, root)) {
            return Some(Finding::ok(
                self.subject(what),
                format!("it reads {}, the store `{name}`", read.display()),
                why,
            ));
        }
        let kept =
            roots.iter().map(|(name, root)| format!("`{name}` at {}", root.display())).collect::<Vec<_>>().join(", ");
        let said = format!("it reads {}, larder keeps {kept}", read.display());
        let line = format!("Environment={variable}={}", first.display());
        let fix = format!("{}; or put {} into [stores] of inventory.toml", self.edit(&line), read.display());
        Some(Finding::fault(self.subject(what), said, why, fix))
    }

    /// Whether the service reads the folder in which the artifacts of one smoke test lie.
    fn with_folder_of(&self, smoke: &str, read: Option<PathBuf>, variable: &str) -> Option<Finding> {
        let artifact = self.wanted.manifests.artifacts.iter().find(|declared| {
            let is_meant = declared.smoke.as_deref().is_some_and(|own| own.starts_with(smoke));
            is_meant && self.wanted.artifacts.artifact(&declared.name).is_some()
        })?;
        let root = self.wanted.stores.get(&artifact.store)?.store.root();
        let (read, why) =
            (read?, "its weights are looked for there and nowhere else, and fetched anew if they are missing");
        let subject = self.subject(variable);
        if same_place(&read, root) {
            return Some(Finding::ok(subject, format!("{} is the store `{}`", read.display(), artifact.store), why));
        }
        let said = format!("it is {}, larder keeps {} in {}", read.display(), artifact.name, root.display());
        let key = if variable == "WorkingDirectory" { String::new() } else { "Environment=".to_owned() };
        let fix = self.edit(&format!("{key}{variable}={}", root.display()));
        Some(Finding::fault(subject, said, why, fix))
    }

    /// Where the GPU service is started: MMAudio's weights are found relative to it.
    fn gpu_folder(&self) -> Option<PathBuf> {
        let folder =
            self.service.unit.working_directory.as_deref().filter(|_| self.service.unit.name.contains("gpu"))?;
        self.service.place(self.machine, folder.trim_start_matches('-'))
    }

    fn split_cache(&self) -> Option<Finding> {
        let folder = self.service.variable("DIFFUSERS_CACHE_DIR")?;
        let why = "one backend of six reads it, so the cache is split: models lie on the disk twice, or are missing";
        let fix = self.edit("UnsetEnvironment=DIFFUSERS_CACHE_DIR");
        Some(Finding::fault(self.subject("DIFFUSERS_CACHE_DIR"), format!("it is set to {folder}"), why, fix))
    }

    fn loras(&self) -> Option<Finding> {
        let said = self.service.variable("LORA_DIR")?;
        let folder = self.service.place(self.machine, said)?;
        let (subject, why) =
            (self.subject("LORA_DIR"), "LoRAs are skipped without a word when their folder is not there");
        if folder.is_dir() {
            return Some(Finding::ok(subject, format!("{} is there", folder.display()), why));
        }
        let fix = self.edit("Environment=LORA_DIR=the folder of the LoRAs, such as …/dlbackend/ComfyUI/models/loras");
        Some(Finding::fault(subject, format!("there is no folder {}", folder.display()), why, fix))
    }

    fn comfyui(&self) -> Option<Finding> {
        let (path, folder) = (self.service.variable("COMFYUI_PATH"), self.service.variable("COMFYUI_DIR"));
        let why = "the platform's parts read one or the other: with different values, models are found by half of it";
        if let (Some(path), Some(folder)) = (path, folder)
            && path != folder
        {
            let said = format!("COMFYUI_PATH is {path}, COMFYUI_DIR is {folder}");
            let fix = self.edit(&format!("Environment=COMFYUI_DIR={path}"));
            return Some(Finding::fault(self.subject("ComfyUI's folder"), said, why, fix));
        }
        let models = self.service.place(self.machine, path.or(folder)?)?.join("models");
        let mut folders = self.wanted.stores.iter().filter(|(_, open)| open.config.layout == Layout::Folder);
        let subject = self.subject("ComfyUI's folder");
        if let Some((name, _)) = folders.find(|(_, open)| same_place(&models, open.store.root())) {
            return Some(Finding::ok(subject, format!("{} is the store `{name}`", models.display()), why));
        }
        let said = format!("it reads {}, which is no store of the inventory", models.display());
        let fix = format!("put {} into [stores] of inventory.toml with layout \"folder\"", models.display());
        Some(Finding::fault(subject, said, "larder neither provides nor checks what ComfyUI reads", fix))
    }
}

/// Whether two paths lead to one place; links are followed as far as there is something.
pub(super) fn same_place(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| fs_err::canonicalize(path).unwrap_or_else(|_| path.components().collect());
    real(a) == real(b)
}
