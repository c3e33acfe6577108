//! The same as a kubectl plugin: `kubectl slice …`.

fn main() -> std::process::ExitCode {
    slicectl::main("kubectl slice")
}
