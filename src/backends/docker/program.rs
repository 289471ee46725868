//! Whether a container's program can be run at all. dockerd starts a small init before it, so that a program which is
//! not there looks like one that has ended.

use std::path::Path;

use bollard::query_parameters::ContainerArchiveInfoOptionsBuilder;

use super::Docker;
use super::connect::status;
use crate::runtime::{ContainerId, ContainerSpec, Result, check};

/// Files that dockerd shows in place of the image's; they are text.
const SHOWN: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
/// Marks of a folder and of a link in dockerd's modes, which are those of Go.
const FOLDER: u32 = 1 << 31;
const LINK: u32 = 1 << 27;

impl Docker {
    /// Refuses a program, given by its absolute path, that is not there or cannot be executed.
    pub(super) async fn check_program(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<()> {
        let program = &spec.args[0];
        if check::program_in_mount(spec)? || !Path::new(program).is_absolute() {
            return Ok(());
        }
        let options = ContainerArchiveInfoOptionsBuilder::default()
            .path(program)
            .build();
        let api = &self.client.api;
        let call = api.get_container_archive_info(&id.0, Some(options));
        let found = match self.client.ask("looking for the program", call).await {
            Err(error) if status(&error) == Some(404) => return Err(check::no_program(spec)),
            found => found?,
        };
        let mode = found.file_mode;
        let text = SHOWN.contains(&program.as_str());
        // What a link leads to is left to the start.
        if mode & LINK != 0 || (mode & FOLDER == 0 && mode & 0o111 != 0 && !text) {
            Ok(())
        } else {
            Err(check::not_executable(spec))
        }
    }
}
