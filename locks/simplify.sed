# Used by `make lock`. uv repeats on every line for which platforms the lock holds (pyproject.toml, [tool.uv]); once is enough.
s/ ; python_full_version < '3.15' and ((platform_machine == 'aarch64'[^()]*) or (platform_machine == 'x86_64'[^()]*)) / /
s/ and ((platform_machine == 'aarch64'[^()]*) or (platform_machine == 'x86_64'[^()]*)) / /
s/ and platform_python_implementation == 'CPython' and sys_platform == 'linux'//
