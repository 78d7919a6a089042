fn main() -> std::process::ExitCode {
    keelfs::cli::main()
}
