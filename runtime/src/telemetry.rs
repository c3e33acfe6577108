//! Logs: one line per event on standard error, filtered as `tracing_subscriber` understands.

use tracing_subscriber::EnvFilter;

/// Logging flags, the same in every process.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArgs {
    /// What to log: `info`, `debug`, or a filter such as `info,slice_netop=debug`.
    #[arg(long = "log", env = "WEFT_LOG", default_value = "info", value_name = "FILTER")]
    pub filter: String,
    /// How to write it.
    #[arg(long = "log-format", env = "WEFT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Json,
    Text,
}

/// Installs the subscriber of this process.
///
/// # Errors
/// Where the filter cannot be parsed; the message names the part that is wrong.
pub fn init(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.filter)
        .map_err(|error| anyhow::anyhow!("--log \"{}\" is not a log filter: {error}", args.filter))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
    Ok(())
}
