"""Work shared out over the nodes of a cluster: workers placed by Ray, parts made by them, lost parts made again."""
