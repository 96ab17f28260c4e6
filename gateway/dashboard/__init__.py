"""The dashboard: a page on the admin port that draws what the admin API tells, and the session it does so in."""
