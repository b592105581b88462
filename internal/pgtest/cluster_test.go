package pgtest

import "testing"

func TestClusterFailsOverAndHeals(t *testing.T) {
	c := StartCluster(t, ClusterOptions{})
	c.Primary().Exec("create table t (n int)", "insert into t values (1)")
	old := c.Primary()
	c.KillPrimary()
	now := c.Promote()
	if now == old {
		t.Fatal("the killed primary was promoted")
	}
	now.Exec("insert into t values (2)") // one standby is left to confirm it
	c.Rejoin()
	for _, s := range c.Standbys() {
		if err := c.await("two rows", func() (bool, error) {
			out, err := s.exec("select count(*) from t")
			return out == "2", err
		}); err != nil {
			t.Error(err)
		}
	}
	c.KillPrimary() // once more, with the rewound node among the standbys
	c.Promote().Exec("insert into t values (3)")
	c.Rejoin()
	if got := c.Primary().Exec("select count(*) from t"); got != "3" {
		t.Errorf("%s rows, want 3", got)
	}
}
