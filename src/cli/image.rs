//! `backendai-agent image`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::{CommonArgs, node, pair};
use crate::image::{self, Bundle, ImageAdmin, ImportOptions, Platform, PullOptions, PushOptions};
use crate::runtime::{ImageInfo, RegistryAuth};

/// Manage images.
#[derive(Clone, Debug, clap::Args)]
pub struct ImageArgs {
    /// What to do.
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum ImageCommand {
    /// Make an image out of a root file system's tar, a `docker save` archive, or an OCI archive or folder
    Import(Box<ImportArgs>),
    /// Fetch an image from its registry
    Pull(PullArgs),
    /// Send an image to a registry: an archive or OCI folder, or one that the engine can give
    Push(PushArgs),
    /// List the images
    Ls(ListArgs),
    /// Remove images by name or id
    Rm(RemoveArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct ImportArgs {
    /// Archive (plain, gzip or zstd), OCI folder, or - for standard input
    path: PathBuf,
    /// Name of the image, such as registry/repository:tag; may be absent when the archive has one
    name: Option<String>,
    /// Label of the image
    #[arg(long, value_name = "K=V", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Environment variable
    #[arg(long, value_name = "K=V", value_parser = pair)]
    env: Vec<(String, String)>,
    /// One word of the command; give it once for each word
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// Working folder
    #[arg(long, value_name = "PATH")]
    workdir: Option<String>,
    /// User (and group) of the command
    #[arg(long)]
    user: Option<String>,
    /// Architecture, such as amd64 [default: this machine's]
    #[arg(long)]
    arch: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct PullArgs {
    /// Name of the image, such as registry/repository:tag or repository@sha256:…
    name: String,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Platform to choose where the registry has several [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct PushArgs {
    /// Archive or folder that image import takes, or the name of an image
    #[arg(value_name = "PATH|NAME")]
    source: String,
    /// Where it goes, such as registry/repository:tag
    #[arg(value_name = "REF")]
    to: String,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a registry is talked to.
#[derive(Clone, Debug, clap::Args)]
struct RegistryArgs {
    /// User name at the registry [default: what docker login left]
    #[arg(long, requires = "password_stdin")]
    username: Option<String>,
    /// Read the password or token from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Talk to the registry without TLS; on loopback that is always so
    #[arg(long)]
    plain_http: bool,
}

impl RegistryArgs {
    /// The credentials that were given.
    async fn auth(&self) -> anyhow::Result<Option<RegistryAuth>> {
        let Some(username) = self.username.clone() else {
            return Ok(None);
        };
        let password = blocking(|| std::io::read_to_string(std::io::stdin())).await?;
        let password = password.context("cannot read the password from standard input")?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        Ok(Some(RegistryAuth { username, password }))
    }
}

#[derive(Clone, Debug, clap::Args)]
struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct RemoveArgs {
    /// Names, or ids such as sha256:…
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Whatever ended it.
pub async fn main(args: ImageArgs, common: CommonArgs) -> anyhow::Result<ExitCode> {
    if let ImageCommand::Push(args) = args.command {
        push(args, &common).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let store = &*node::open_images(&common).await?;
    match args.command {
        ImageCommand::Push(_) => {}
        ImageCommand::Import(args) => import(store, *args).await?,
        ImageCommand::Pull(args) => pull(store, args).await?,
        ImageCommand::Ls(args) => list(store, &args).await?,
        ImageCommand::Rm(args) => remove(store, args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn import(store: &dyn ImageAdmin, args: ImportArgs) -> anyhow::Result<()> {
    let options = ImportOptions {
        labels: args.label.into_iter().collect(),
        env: args
            .env
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect(),
        command: args.cmd,
        workdir: args.workdir,
        user: args.user,
        volumes: Vec::new(),
        architecture: args.arch,
    };
    let images = store
        .import(&args.path, args.name.as_deref(), &options)
        .await?;
    for image in &images {
        print(image, args.json);
    }
    Ok(())
}

async fn pull(store: &dyn ImageAdmin, args: PullArgs) -> anyhow::Result<()> {
    let options = PullOptions {
        auth: args.registry.auth().await?,
        plain_http: args.registry.plain_http,
        platform: args.platform.unwrap_or_default(),
        progress: progress()?,
    };
    let pulled = store.pull_with(&args.name, &options).await;
    options.progress.finish_and_clear();
    print(&pulled?, args.json);
    Ok(())
}

/// A file or folder needs no engine.
async fn push(args: PushArgs, common: &CommonArgs) -> anyhow::Result<()> {
    let path = PathBuf::from(&args.source);
    let scratch = common.state_dir.join("tmp");
    if args.source == "-" && args.registry.password_stdin {
        anyhow::bail!("standard input is the archive or the password, not both");
    }
    let bundle = if args.source == "-" || path.exists() {
        let options = ImportOptions::default();
        Bundle::read(&path, Some(&args.to), &options, &scratch).await?
    } else {
        let images = node::open_images(common).await?;
        images.export(&args.source, &scratch).await?
    };
    let options = PushOptions {
        auth: args.registry.auth().await?,
        plain_http: args.registry.plain_http,
        progress: progress()?,
    };
    let pushed = image::push(&bundle, &args.to, &options).await;
    options.progress.finish_and_clear();
    let pushed = pushed?;
    if args.json {
        println!(
            "{}",
            json!({ "name": pushed.name, "digest": pushed.digest, "sent": pushed.sent })
        );
    } else {
        println!("{} {}", pushed.digest, pushed.name);
    }
    Ok(())
}

/// A bar on standard error; nothing where that is no terminal.
fn progress() -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let template = "{bar:40} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(template)?);
    Ok(bar)
}

async fn remove(store: &dyn ImageAdmin, args: RemoveArgs) -> anyhow::Result<()> {
    let mut removed = Vec::new();
    for image in args.images {
        store.remove(&image).await?;
        removed.push(image);
    }
    if args.json {
        println!("{}", json!({ "removed": removed }));
    }
    Ok(())
}

fn print(image: &ImageInfo, json: bool) {
    if json {
        println!("{}", to_json(image));
    } else {
        println!("{} {}", image.id, image.names.join(" "));
    }
}

async fn list(store: &dyn ImageAdmin, args: &ListArgs) -> anyhow::Result<()> {
    let images = store.list().await?;
    if args.json {
        let images: Vec<Value> = images.iter().map(to_json).collect();
        println!("{}", Value::from(images));
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["NAME", "ID", "ARCH", "SIZE"]);
    for image in &images {
        let id = image
            .id
            .trim_start_matches("sha256:")
            .get(..12)
            .unwrap_or("");
        let size = format!("{:.1} MiB", mebibytes(image.size));
        let none = ["<none>".to_owned()];
        let names = if image.names.is_empty() {
            &none
        } else {
            image.names.as_slice()
        };
        for name in names {
            table.add_row([name, id, &image.architecture, &size]);
        }
    }
    println!("{}", table.trim_fmt());
    Ok(())
}

/// The image as every `--json` prints it.
fn to_json(image: &ImageInfo) -> Value {
    json!({
        "names": image.names,
        "id": image.id,
        "repo_digest": image.repo_digest,
        "labels": image.labels,
        "env": image.env,
        "command": image.command,
        "architecture": image.architecture,
        "size": image.size,
    })
}

fn mebibytes(bytes: u64) -> f64 {
    let kibibytes = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
    f64::from(kibibytes) / 1024.0
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await?)
}
