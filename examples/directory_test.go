package examples_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// chat is a chat that signs what it sends.
type chat struct {
	site
	secret string
}

func (c chat) sign(text string) string {
	mac := hmac.New(sha256.New, []byte(c.secret))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}

// post sends a form that was signed at some time.
func (c chat) post(t *testing.T, at time.Time, form string) answer {
	t.Helper()
	stamp := strconv.FormatInt(at.Unix(), 10)
	return c.do(t, http.MethodPost, "/command", form, "Content-Type: application/x-www-form-urlencoded",
		"X-Slack-Request-Timestamp: "+stamp, "X-Slack-Signature: v0="+c.sign("v0:"+stamp+":"+form))
}

// say is a command of somebody in a team. It returns what the bot says.
func (c chat) say(t *testing.T, team, text string) string {
	t.Helper()
	form := url.Values{"team_id": {team}, "user_name": {"grace"}, "text": {text}, "command": {"/who"}}
	var said struct {
		Type string `json:"response_type"`
		Text string
	}
	c.post(t, time.Now(), form.Encode()).want(t, http.StatusOK, "").into(t, &said)
	if said.Type != "ephemeral" {
		t.Errorf("%q is answered to all: %s", text, said.Text)
	}
	return said.Text
}

// TestDirectory: entries are added, found and deleted by those whom the chat speaks
// for, each in their own team.
func TestDirectory(t *testing.T) {
	t.Parallel()
	p := copyProject(t, "directory")
	p.wrangler(t, "deploy", "--secrets-file", p.file(t, ".secrets", "SIGNING_SECRET=one-two-three\n"))
	bot := chat{worker("directory"), "one-two-three"}
	says := func(text, want string) {
		t.Helper()
		nearkeytest.Eventually(t, fmt.Sprintf("%q is answered", text), func() error {
			if got := bot.say(t, "T1", text); got != want {
				return fmt.Errorf("the bot says %q, want %q", got, want)
			}
			return nil
		})
	}
	const help = "add NAME TEXT · delete NAME · find PREFIX · export"
	says("", help)
	says("dance", help)
	says("find", "Nobody begins with .")
	says("add Ada  Compilers & <b>looms</b>, room 5 ", "Ada is in the directory.")
	says("add adam Gardens\nand dogs", "adam is in the directory.")
	says("add bob Bread", "bob is in the directory.")
	says("find AD", "*Ada* Compilers &amp; &lt;b&gt;looms&lt;/b&gt;, room 5 (grace)\n*adam* Gardens\nand dogs (grace)")
	says("add ADA Poetry", "ADA is in the directory.") // the same entry
	says("find ada", "*ADA* Poetry (grace)\n*adam* Gardens\nand dogs (grace)")
	if got := bot.say(t, "T2", "find a"); got != "Nobody begins with a." {
		t.Errorf("another team sees %q", got)
	}
	says("delete adam", "adam is deleted.")
	says("delete adam", "There is no adam.")
	says("find ada", "*ADA* Poetry (grace)")
	says("add ada", "Say: add NAME TEXT. A name is one word of at most 60 characters.")
	says("add "+strings.Repeat("x", 61)+" y", "Say: add NAME TEXT. A name is one word of at most 60 characters.")
	says("add "+strings.Repeat("x", 60)+" y", strings.Repeat("x", 60)+" is in the directory.")
	// {"name":"x","text":"…","by":"grace"} has 35 bytes beside the text.
	says("add x "+strings.Repeat("y", 1024-35), "x is in the directory.")
	says("add x "+strings.Repeat("y", 1024-34), "That is too long.")

	t.Run("export", func(t *testing.T) { directoryExport(t, p, bot) })
	t.Run("signatures", func(t *testing.T) { directorySignatures(t, bot) })
}

// directoryExport exports more than a page of a listing.
func directoryExport(t *testing.T, p *project, bot chat) {
	const many = 1500
	type pair struct {
		Key      string `json:"key"`
		Value    string `json:"value"`
		Metadata any    `json:"metadata"`
	}
	pairs := make([]pair, many)
	for i := range pairs {
		name := fmt.Sprintf("user-%04d", i)
		pairs[i] = pair{"T3/" + name, "", map[string]string{"name": name, "text": "<text>", "by": "import"}}
	}
	file, err := json.Marshal(pairs)
	check(t, err)
	p.nearkey(t, "kv", "bulk", "put", "directory-entries", p.file(t, "pairs.json", string(file)))
	if lines := strings.Split(bot.say(t, "T3", "find user-00"), "\n"); len(lines) != 21 || lines[20] != "… and others" {
		t.Errorf("found %q", lines)
	}
	link, err := url.Parse(bot.say(t, "T3", "export"))
	check(t, err)
	a := bot.get(t, link.RequestURI()).want(t, http.StatusOK, "").wantHeader(t, "Content-Type", "application/x-ndjson").
		wantHeader(t, "Cache-Control", "private, no-store")
	lines := strings.Split(strings.TrimSuffix(string(a.body), "\n"), "\n")
	if len(lines) != many {
		t.Fatalf("%d entries are exported, want %d", len(lines), many)
	}
	for i, line := range lines {
		var entry struct{ Name, Text, By string }
		check(t, json.Unmarshal([]byte(line), &entry))
		if entry.Name != fmt.Sprintf("user-%04d", i) || entry.Text != "<text>" || entry.By != "import" {
			t.Fatalf("line %d is %s", i, line)
		}
	}

	nobodys, err := url.Parse(bot.say(t, "T4", "export"))
	check(t, err)
	if a := bot.get(t, nobodys.RequestURI()).want(t, http.StatusOK, ""); len(a.body) != 0 {
		t.Errorf("a team without entries exports %s", a.body)
	}

	query := link.Query()
	for name, value := range map[string]string{"team": "T1", "until": "99999999999", "signature": strings.Repeat("0", 64)} {
		changed := link.Query()
		changed.Set(name, value)
		bot.get(t, "/export?"+changed.Encode()).want(t, http.StatusForbidden, "not good")
	}
	late := strconv.FormatInt(time.Now().Unix()-1, 10)
	query.Set("until", late)
	query.Set("signature", bot.sign("export:T3:"+late))
	bot.get(t, "/export?"+query.Encode()).want(t, http.StatusForbidden, "not good")
}

// directorySignatures asks as those do who are not the chat.
func directorySignatures(t *testing.T, bot chat) {
	const form = "team_id=T1&user_name=eve&text=add+eve+was+here"
	now := time.Now()
	for _, at := range []time.Time{now.Add(-5*time.Minute - 2*time.Second), now.Add(6 * time.Minute)} {
		bot.post(t, at, form).want(t, http.StatusUnauthorized, "signature")
	}
	bot.post(t, now.Add(-4*time.Minute), "team_id=T1&text=find").want(t, http.StatusOK, "")
	chat{bot.site, "one-two-four"}.post(t, now, form).want(t, http.StatusUnauthorized, "signature")
	chat{bot.site, ""}.post(t, now, form).want(t, http.StatusUnauthorized, "signature")

	stamp := strconv.FormatInt(now.Unix(), 10)
	good := bot.sign("v0:" + stamp + ":" + form)
	for what, headers := range map[string][]string{
		"no headers":       {"X: y"},
		"no signature":     {"X-Slack-Request-Timestamp: " + stamp},
		"an empty one":     {"X-Slack-Request-Timestamp: " + stamp, "X-Slack-Signature: v0="},
		"half of it":       {"X-Slack-Request-Timestamp: " + stamp, "X-Slack-Signature: v0=" + good[:32]},
		"of another time":  {"X-Slack-Request-Timestamp: " + strconv.FormatInt(now.Unix()+1, 10), "X-Slack-Signature: v0=" + good},
		"no time":          {"X-Slack-Signature: v0=" + good},
		"a time in words":  {"X-Slack-Request-Timestamp: now", "X-Slack-Signature: v0=" + bot.sign("v0:now:"+form)},
		"for another form": {"X-Slack-Request-Timestamp: " + stamp, "X-Slack-Signature: v0=" + bot.sign("v0:"+stamp+":"+form+"&")},
	} {
		if a := bot.do(t, http.MethodPost, "/command", form, headers...); a.status != http.StatusUnauthorized {
			t.Errorf("%s: status %d: %s", what, a.status, a.body)
		}
	}
	if got := bot.say(t, "T1", "find eve"); got != "Nobody begins with eve." {
		t.Errorf("eve got in: %s", got)
	}
	for _, team := range []string{"", "T1/x", strings.Repeat("T", 41)} {
		bot.post(t, now, url.Values{"team_id": {team}, "text": {"find"}}.Encode()).want(t, http.StatusBadRequest, "no team")
	}
	padding := func(size int) string { return "team_id=T1&text=" + strings.Repeat("x", size-len("team_id=T1&text=")) }
	bot.post(t, now, padding(16<<10)).want(t, http.StatusOK, "export")
	bot.post(t, now, padding(16<<10+1)).want(t, http.StatusRequestEntityTooLarge, "")
	bot.get(t, "/command").want(t, http.StatusNotFound, "")
}
