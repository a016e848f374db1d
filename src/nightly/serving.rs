//! The systemd units of a server, as text: a socket that listens, and the service that the first client starts.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::units::{FILTERS, WALLS, command, quoted, quoted_path};

/// The service's name.
pub const SERVE_SERVICE: &str = "larder-serve.service";
/// The socket's name.
pub const SERVE_SOCKET: &str = "larder-serve.socket";

/// What is run, as whom, and what it may do.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Where the socket listens.
    pub address: SocketAddr,
    /// The user that the server runs as, who must be able to read the stores.
    pub user: String,
    /// The program and its arguments, without those that name secrets.
    pub serve: Vec<String>,
    /// Files that only root need be able to read, each after the option that names it, such as `--token-file`.
    pub secrets: Vec<(&'static str, PathBuf)>,
    /// Where larder remembers what it measured.
    pub state: PathBuf,
    /// Other folders that are written to.
    pub writes: Vec<PathBuf>,
}

/// The socket's text.
pub fn serve_socket(serving: &Serving) -> String {
    format!(
        "{}[Unit]\nDescription=The AI models of this machine, for others\n\n[Socket]\nListenStream={}\n\
         # Both families where the address is one of both.\nBindIPv6Only=both\n\n[Install]\nWantedBy=sockets.target\n",
        heading(SERVE_SOCKET),
        serving.address
    )
}

/// The service's text.
pub fn serve_service(serving: &Serving) -> String {
    let mut out = format!(
        "{}[Unit]\nDescription=Hand out the AI models of this machine\nRequires={SERVE_SOCKET}\nAfter={SERVE_SOCKET}\n\n\
         [Service]\nUser={}\nEnvironment={}\n",
        heading(SERVE_SERVICE),
        serving.user,
        quoted(&format!("LARDER_STATE={}", serving.state.display()))
    );
    let mut options = String::new();
    for (option, file) in &serving.secrets {
        let name = option.trim_start_matches('-');
        out.push_str(&format!("LoadCredential={}\n", quoted(&format!("{name}:{}", file.display()))));
        options.push_str(&format!(" {option} %d/{name}"));
    }
    out.push_str(&format!("ExecStart={}{options}\n", command(&serving.serve)));
    out.push_str(
        "# It looks again at what it serves.\nExecReload=/bin/kill -HUP $MAINPID\n\
         Restart=on-failure\n# What is under way may end.\nTimeoutStopSec=2min\n\
         LimitNOFILE=16384\n# What it may not do.\nUMask=0022\nCapabilityBoundingSet=\n",
    );
    out.push_str(FILTERS);
    out.push_str(WALLS);
    let writes = std::iter::once(&serving.state).chain(&serving.writes);
    writes.for_each(|folder| out.push_str(&format!("ReadWritePaths={}\n", quoted_path(folder))));
    out
}

fn heading(unit: &str) -> String {
    format!("# Written by `larder serve --units`; make changes with: systemctl edit {unit}\n")
}
