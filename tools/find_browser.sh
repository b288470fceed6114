#!/bin/sh
# Prints a Chromium or Chrome for the tests of the pages; CHROME=/path/to/browser names one.
# Without a browser it prints nothing, says on stderr how to get one, and the tests of the pages are skipped.
# With CI=true it installs Debian's, or fails: an automatic run must not skip them unseen.
mac="/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"

find_browser() {
    if [ -n "$CHROME" ]; then
        command -v "$CHROME"
        return
    fi
    for name in chromium chromium-browser google-chrome google-chrome-stable "$mac"; do
        command -v "$name" && return
    done
    return 1
}

find_browser && exit 0
if [ -n "$CHROME" ]; then
    echo "CHROME=$CHROME is not a program that can be run." >&2
    exit 1
fi
how="The tests of the pages need Chromium or Chrome: 'apt install chromium' on Debian, 'brew install --cask google-chrome' on macOS, or CHROME=/path/to/browser."
if [ "$CI" != true ]; then
    echo "$how They are skipped." >&2
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium ..." >&2
    apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >&2
    find_browser && exit 0
fi
echo "$how With CI=true they are not skipped." >&2
exit 1
