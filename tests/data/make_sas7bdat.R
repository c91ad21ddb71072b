# Writes SPXRAW_G_simulated.sas7bdat from a CSV that the simulator made; see make_sas7bdat.py, which calls it.
# Python cannot write SAS7BDAT, the format of CDC's raw curve file; R's haven can (install.packages("haven")).
#   Rscript make_sas7bdat.R SPXRAW_G_simulated.csv SPXRAW_G_simulated.sas7bdat
args <- commandArgs(trailingOnly = TRUE)
stopifnot(length(args) == 2)
text <- c("SPATTYPE", "SPAPOS", "SPAPLAT", "SPAACC", "SPAQEFF", "SPXRAW")
table <- read.csv(args[1], colClasses = "character")
for (name in setdiff(names(table), text)) table[[name]] <- as.numeric(table[[name]])
suppressWarnings(haven::write_sas(table, args[2]))  # deprecated there, but the one free writer of this format
