//! The program as a user meets it: every command, its output in both forms, and every exit code.
#![expect(clippy::unwrap_used, clippy::too_many_lines, reason = "tests; most lines are snapshots")]

#[expect(dead_code, reason = "these tests use a part of it")]
#[path = "support/fake_server.rs"]
mod fake_server;
#[path = "support/program.rs"]
mod program;

#[path = "cli/codes.rs"]
mod codes;
#[path = "cli/commands.rs"]
mod commands;
#[path = "cli/demo.rs"]
mod demo;
#[path = "cli/failures.rs"]
mod failures;
#[path = "cli/json.rs"]
mod json;
#[path = "cli/pipes.rs"]
mod pipes;
#[path = "cli/provider.rs"]
mod provider;
#[path = "cli/real_lab.rs"]
mod real_lab;
#[path = "cli/terminal.rs"]
mod terminal;
